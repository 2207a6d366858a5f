"""The lines of results/runs.jsonl: one for each finished run, or number that was counted, never changed afterwards.

A line says what was measured (`cell`, `budget`, `width`, `seed`), what came out (the run's result.json), how it went
(`curve`, which holds accuracies on the test split only where the paper plots these; `steps`, `images_per_second`,
`peak_memory` in bytes; `agreement`, where that was measured), the whole `config`, and the machine (`environment`). A
run is found again by what it computes, not by its cell: cells that share a recipe share its runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from statistics import median
from types import UnionType
from typing import Any

from torchcaps.config import PLACES, Config, to_plain
from torchcaps.revisions import revisions_of
from torchcaps.tables.budget_names import BUDGETS, COUNT
from torchcaps.tables.lines import append_line, read_lines
from torchcaps.tables.metrics import Record
from torchcaps.terminal import warn

RUNS = "runs.jsonl"  # in a folder of results
# Where, under which name and what is seen, not what is computed. Of several processes each has a batch norm of its own.
_PLACES = (*PLACES, "device", "recipe", "seed")
_PLACES_OF_DATA = ("root", "download")
_CURVE = ("train_loss", "train_accuracy", "validation_accuracy")
_FIELDS: dict[str, type | UnionType] = {  # of a line, each of which may be left out
    **dict.fromkeys(("cell", "budget", "width", "recipe", "config_hash", "failure"), str),
    **dict.fromkeys(("seed", "steps", "peak_memory"), int),
    **dict.fromkeys(("test_accuracy", "validation_accuracy", "images_per_second", "value"), int | float),
    **dict.fromkeys(("seconds", "cpu_seconds"), int | float),
    **dict.fromkeys(("curve", "config", "environment", "revisions", "examination"), dict),
}
_RUN = (*BUDGETS, COUNT)  # budgets of lines that are found by hash and seed
_STAGES = (0.005, 0.1, 0.4, 1.0)  # shares of a run whose agreement a line keeps: of 200 epochs 1, 20, 80 and 200


def name_machine(environment: Mapping[str, Any]) -> str:
    """Return what computed a line: the GPU of a run on one, else the processor and its threads.

    Costs that were measured before the device was written down count as the GPU's where there was one.
    """
    gpu = environment.get("gpu")
    if gpu and environment.get("device", "cuda") == "cuda":
        return str(gpu)
    return f"{environment.get('cpu')}, {environment.get('threads')} thread(s)"


def config_hash(config: Config, revisions: Mapping[str, int] | None = None) -> str:
    """Return a name of what `config` computes: of the values in which it differs from the defaults, seed and places
    aside.

    So a field that a later version adds, with a default that changes nothing, leaves the name as it was; a change of
    what is computed raises a revision, and with it the name. `revisions` are those of a run; None: the present ones.
    """
    plain, default = _bare(to_plain(config)), _bare(to_plain(Config()))
    different = _differences(plain, default)
    if raised := revisions_of(config) if revisions is None else revisions:
        different["revisions"] = dict(raised)
    text = json.dumps(different, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def count_hash(config: Config) -> str:
    """Return a name of what is counted of `config` without training it: revisions that change training alone are
    left out.
    """
    return config_hash(config, revisions_of(config, trained=False))


def _bare(plain: dict[str, Any]) -> dict[str, Any]:
    """Return a plain config without places."""
    data = {name: value for name, value in plain["data"].items() if name not in _PLACES_OF_DATA}
    return {name: value for name, value in plain.items() if name not in _PLACES} | {"data": data}


def _differences(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, dict) and isinstance(before, dict) and before:
            value = _differences(value, before)
            if value:
                found[name] = value
        elif value != before:
            found[name] = value
    return found


def read_records(path: Path) -> list[Record]:
    """Return the lines of the file `path`, oldest first; none where it is not there.

    Raises:
        ValueError: for a line that is not the JSON object of a run; names it, and the field that is of another type.
        OSError: when the file cannot be read.
    """
    records = read_lines(path)
    for number, record in enumerate(records, 1):
        if wrong := _describe_wrong(record):
            raise ValueError(f"line {number} of {path}: {wrong}: mend the line, or take it out")
    return list(records)


def _describe_wrong(record: Record) -> str:
    """Return what no line of ours has; empty where there is nothing."""
    for name, kind in _FIELDS.items():
        if not isinstance(record.get(name), kind | None):
            return f"{name} is {record[name]!r}, which must be of another type"
    lacking = [name for name in ("config_hash", "seed") if record.get("budget") in _RUN and record.get(name) is None]
    return f"it has no {lacking[0]}" if lacking else ""


def merge_records(parts: Sequence[Sequence[Record]]) -> list[Record]:
    """Return the lines of several files, in their order; one that stands in an earlier file too is left out."""
    seen: set[str] = set()
    merged = []
    for records in parts:
        texts = [json.dumps(record, sort_keys=True) for record in records]
        merged += [record for record, text in zip(records, texts, strict=True) if text not in seen]
        seen |= set(texts)
    return merged


def append_record(path: Path, record: Record) -> None:
    """Add a line to the file `path`, whole or not at all: see `append_line`."""
    append_line(path, record)


def find_run(records: Sequence[Record], config: Config, budget: str) -> Record | None:
    """Return the line of a run of `config`, its seed included, in `budget`; the first, where there are several."""
    wanted = (config_hash(config), budget, config.seed)
    return next((each for each in records if _key(each) == wanted), None)


def find_runs(records: Sequence[Record], config: Config, budget: str) -> list[Record]:
    """Return the lines of runs of `config`, whatever their seed, in `budget`: one for each seed, in their order."""
    by_seed: dict[int, Record] = {}
    for record in find_all_runs(records, config, budget):
        by_seed.setdefault(record["seed"], record)
    return [by_seed[seed] for seed in sorted(by_seed)]


def find_all_runs(records: Sequence[Record], config: Config, budget: str) -> list[Record]:
    """Return the lines of runs of `config` in `budget`, also where a seed was run again, as in another precision."""
    wanted = (config_hash(config), budget)
    return [record for record in records if _key(record)[:2] == wanted]


def _key(record: Record) -> tuple[str | None, str | None, int | None]:
    """Return what a run is found by; nothing finds one whose recipe was changed on the command line."""
    if record.get("changed"):
        return None, None, None
    return record.get("config_hash"), record.get("budget"), record.get("seed")


def find_finished(out: Path, name: str, seed: int) -> Path | None:
    """Return the folder of a finished run in the folder `out`, whatever it is called, of the config `name` (its
    `config_hash`) with this seed, as its recipe has it; None where there is none. One that was pruned or folded is
    none; a damaged one is passed by, and that is said once.
    """
    for path in sorted(out.glob("*/result.json")):
        folder = path.parent
        with suppress(FileNotFoundError):
            config, model = (folder / "config.json").stat(), folder / "model.json"
            written = (config.st_mtime_ns, model.stat().st_mtime_ns if model.exists() else None)
            if _identify(folder, written) == (name, seed):
                return folder
    return None


@cache
def _identify(folder: Path, written: tuple[int, int | None]) -> tuple[str, int] | None:
    """Return hash and seed of the run in `folder`, whose config.json and model.json were `written` then, the latter
    perhaps never; None of one that was changed, pruned or folded, or is damaged.
    """
    from torchcaps.train import RunFolder

    run = RunFolder(folder)
    try:
        config, revisions, smaller = run.read_config(), run.read_revisions(), run.is_smaller()
    except (FileNotFoundError, ValueError) as error:
        warn(f"passed by: {error}")
        return None
    return None if config.changed or smaller else (config_hash(config, revisions), config.seed)


def describe_run(folder: Path, **more: Any) -> Record:
    """Return the line of the finished run in `folder`; `more` is what only its caller knows: cell, budget, width,
    memory.

    Raises:
        FileNotFoundError, ValueError: for a folder that is not one of a finished run, or is damaged.
    """
    from torchcaps.train import RunFolder

    run = RunFolder(folder)
    config, revisions = run.read_config(), run.read_revisions()
    history = run.read_history(("step", *_CURVE))
    if not history:
        raise ValueError(f"{folder / 'metrics.jsonl'} has no line of an epoch, but the run is finished")
    return {
        **more,
        "recipe": config.recipe,
        "seed": config.seed,
        **run.read_result(),
        "steps": history[-1]["step"],
        "images_per_second": round(median(each["images_per_second"] for each in history), 3),
        "curve": {name: _rounded([each[name] for each in history]) for name in _CURVE}
        | _test_curve(history)
        | _penalties(history),
        **_keep_stages(history),
        "config_hash": config_hash(config, revisions),
        **({"revisions": revisions} if revisions else {}),
        **({"changed": list(config.changed)} if config.changed else {}),
        "config": _bare(to_plain(config)),
        "environment": run.read("environment.json"),
    }


def _test_curve(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Return accuracy on the test split after each epoch, where that was measured (`Config.test_curve`)."""
    values = [each.get("test_accuracy") for each in history]
    return {"test_accuracy": _rounded(values)} if any(value is not None for value in values) else {}


def _penalties(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the model added to the training loss at each epoch, and each term without its weight; of others
    nothing.
    """
    if not all("penalties" in each for each in history):
        return {}
    terms = {name: _rounded([each["penalties"][name] for each in history]) for name in history[0]["penalties"]}
    return {"train_penalty": _rounded([each["train_penalty"] for each in history]), "penalties": terms}


def _keep_stages(history: list[dict[str, Any]]) -> dict[str, Any]:
    """Return epoch and agreement at each of `_STAGES`, the same epoch perhaps more than once; nothing where none was
    measured.

    That of all epochs would be as long as all other lines together.
    """
    if not all("agreement" in each for each in history):
        return {}
    kept = [history[max(1, round(share * len(history))) - 1] for share in _STAGES]
    return {"agreement": [{"epoch": each["epoch"], "layers": each["agreement"]} for each in kept]}


def _rounded(values: list[float | None]) -> list[float | None]:
    return [None if value is None else round(value, 5) for value in values]
