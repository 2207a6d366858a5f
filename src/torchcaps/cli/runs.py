"""`torchcaps runs`: what was asked of the runs in a folder, and what came out."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from torchcaps.cli.listing import print_columns
from torchcaps.terminal import note, printable, say, show_time

if TYPE_CHECKING:
    from torchcaps.train import RunFolder

Column = Literal["name", "model", "data", "seed", "epochs", "validation", "test", "parameters", "seconds"]
COLUMNS: tuple[Column, ...] = (
    "name", "model", "data", "seed", "epochs", "validation", "test", "parameters", "seconds",
)  # fmt: skip
LARGEST_FIRST = ("epochs", "validation", "test", "parameters", "seconds")


def runs(
    folder: Positional[Path] = Path("runs"),
    sort: Column = "name",
    json: bool = False,
) -> None:
    """List the runs in a folder: what was asked, how far they came, and what came out.

    For example: `torchcaps runs --sort test`.

    Args:
        folder: that holds the folders of runs
        sort: the column that orders them: names and the like from A on, accuracies and the like the largest first
        json: print one JSON array, with all that a run's result says and what was changed in its recipe
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: give the one that holds the runs, as --out did")
    found = sort_runs(list_runs(folder), sort)
    if json:
        say(dumps(found))
        return
    if not found:
        note(f"torchcaps: there are no runs in {folder}")
        return
    header = [*COLUMNS[:-1], "time", "state", "changed"]
    print_columns([header, *([printable(cell) for cell in _row(each)] for each in found)])


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """Return what the runs in `folder` say of themselves; one that is damaged is named on standard error and passed
    over.
    """
    from torchcaps.train import RunFolder

    found = []
    for path in sorted(path.parent for path in folder.glob("*/config.json")):
        try:
            found.append(describe(RunFolder(path)))
        except (OSError, ValueError) as error:
            note(f"torchcaps: {' '.join(str(error).split())}")
    return found


def describe(run: RunFolder) -> dict[str, Any]:
    """Return a run in one record: `epochs` are those that are done, `asked` those of its config.

    Raises:
        OSError, ValueError: when a file of it is damaged.
    """
    config, done = run.read_config(), run.read_history()
    result = run.read_result() if run.finished else {}
    best = [each["validation_accuracy"] for each in done if each.get("validation_accuracy") is not None]
    return {
        "name": run.path.name,
        "folder": str(run.path),
        "recipe": config.recipe,
        "model": config.model.name,
        "data": config.data.name,
        "seed": config.seed,
        "epochs": len(done),
        "asked": config.epochs,
        "validation": result.get("validation_accuracy", max(best, default=None)),
        "test": result.get("test_accuracy"),
        "parameters": result.get("parameters"),
        "seconds": result.get("seconds", sum(each["seconds"] for each in done)),
        "state": "finished" if result else "running" if run.in_use else "unfinished",
        "start": config.start,
        "continued": config.continued,
        "changed": list(config.changed),
        "result": result,
    }


def sort_runs(found: Sequence[dict[str, Any]], by: Column) -> list[dict[str, Any]]:
    """Return the runs in the order of a column; those that lack it stand last."""
    there = [each for each in found if each[by] is not None]
    ordered = sorted(there, key=lambda each: each[by], reverse=by in LARGEST_FIRST)
    return [*ordered, *(each for each in found if each[by] is None)]


def _row(run: dict[str, Any]) -> list[str]:

    shares = ["" if run[name] is None else f"{run[name]:.2%}" for name in ("validation", "test")]
    parameters = "" if run["parameters"] is None else f"{run['parameters']:,}"
    names = [run["name"], run["model"], run["data"], str(run["seed"]), f"{run['epochs']}/{run['asked']}"]
    return [*names, *shares, parameters, show_time(run["seconds"]), run["state"], " ".join(run["changed"])]
