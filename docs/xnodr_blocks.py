"""Blocks of xnodr-xnidr.md that no other page has; `docs/blocks.py` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchcaps.papers import find_cell
from torchcaps.tables.budget_names import EVIDENCE
from torchcaps.tables.budgets import apply_budget
from torchcaps.tables.cells import Train
from torchcaps.tables.lines import read_lines
from torchcaps.tables.records import config_hash

RESULTS = Path(__file__).parent.parent / "results"
HEADS = {"linear": "dense", "dynamic": "dynamic routing", "xnodr": "XnODR", "xnidr": "XnIDR", "xnodr-xnidr": "both"}
FORMS = ("dense", "dynamic", "xnodr", "xnodr_packed", "midpoint_packed", "xnidr", "both", "both_packed")
Line = dict[str, Any]
Row = tuple[str, ...]


def seeds(earlier: str) -> Iterator[Row]:
    """Test accuracy of each head on CIFAR-10 by seed, budget cpu; runs of another form are called `earlier`."""
    lines = [each for each in read_lines(RESULTS / "runs.jsonl") if str(each.get("cell")).startswith("xnodr/figure4/")]
    known = sorted({each["seed"] for each in lines})
    table: list[Row] = []
    for head, name in HEADS.items():
        cell = find_cell(f"xnodr/figure4/mobilenet-{head}-plain")
        assert isinstance(cell.how, Train)
        wanted = config_hash(apply_budget(cell.how.build(), EVIDENCE, cell))
        mine = [each for each in lines if (each.get("cell"), each.get("budget")) == (cell.id, EVIDENCE)]
        long = [each for each in mine if each["config"]["schedule"]["step_size"] == 6000]
        short = [each for each in mine if each not in long]
        accuracy = {each["seed"]: f"{100 * each['test_accuracy']:.2f}" for each in long}
        before = {each["seed"]: f"{100 * each['test_accuracy']:.2f}" for each in short}
        form = "" if all(each["config_hash"] == wanted for each in long) else earlier
        cells = (*(accuracy.get(seed, "") for seed in known), before.get(0, ""), f"{long[-1]['parameters']:,}")
        table.append((name, *cells, form))
    titles = "head", *(f"seed {seed} (%)" for seed in known), "seed 0, steps of 750 (%)", "parameters", "runs"
    shown = None if any(row[-1] for row in table) else -1  # the last column says which runs are of another form
    yield from (row[:shown] for row in (titles, *table))


def layers(earlier: str) -> Iterator[Row]:
    """Milliseconds of one layer in each form, at one thread and, in parentheses, at two."""
    newest = _newest("xnor/")
    ratios = ("float / packed", "tiled / packed")
    yield "N x J, d -> D", "batch", "tiled (ms)", "float (ms)", "packed (ms)", *ratios, "weights"
    for (name, batch, threads), line in newest.items():
        if threads != 1:
            continue
        two = newest.get((name, batch, 2))
        times = (_pair(line, two, key) for key in ("tiled_ms", None, "packed_ms"))
        times_faster = (_ratio(line, two, key) for key in ("packed_over_best_float", "packed_over_tiled"))
        yield name, str(batch), *times, *times_faster, f"1/{line['weights_smaller']:.1f}"


def memory(earlier: str) -> Iterator[Row]:
    """Megabytes that a pass of one layer adds to the process, one thread, where *ready* was measured too."""
    yield "N x J, d -> D", "batch", "tiled (MB)", "ready (MB)", "float (MB)", "packed (MB)", "ready (ms)"
    for (name, batch, threads), line in _newest("xnor/").items():
        if threads == 1 and "ready_ms" in line:
            forms = ("tiled", "ready", line["best_float"], "packed")
            peaks = (_short(line[f"{form}_peak_mb"]) + _mark(form) for form in forms)
            yield name, str(batch), *peaks, _short(line["ready_ms"])


def heads(earlier: str) -> Iterator[Row] | str:
    """Milliseconds of whole heads, dense layers beside capsules; a sentence where no line is there yet."""
    newest = _newest("heads/")
    if not newest:
        return "Not measured yet: `python benchmarks/heads.py`, while nothing else runs."
    return _heads(newest)


def _heads(newest: dict[tuple[str, int, int], Line]) -> Iterator[Row]:
    yield "features of", "batch", "threads", *(f"{form.replace('_', ', ')} (ms)" for form in FORMS)
    for (name, batch, threads), line in newest.items():
        yield name, str(batch), str(threads), *(_short(line[f"{form}_ms"]) for form in FORMS)


def deployed(earlier: str) -> Iterator[Row]:
    """A whole network as it is deployed."""
    yield "network", "threads", "form", "time (ms)", "size (MB)", "scores differ by"
    for (name, _, threads), line in _newest("deploy/").items():
        for form in ("trained", "packed", "onnx"):
            difference = f"{line[f'{form}_difference']:.1e}" if f"{form}_difference" in line else ""
            size = f"{line[f'{form}_bytes'] / 1e6:.2f}"
            yield name, str(threads), form, f"{line[f'{form}_ms']:.2f}", size, difference


def _newest(prefix: str) -> dict[tuple[str, int, int], Line]:
    """The newest line of each benchmark, batch and number of threads."""
    found = {}
    for line in read_lines(RESULTS / "benchmarks.jsonl"):
        if line["benchmark"].startswith(prefix):
            found[line["benchmark"].removeprefix(prefix), line.get("batch", 1), line["threads"]] = line
    return found


def _mark(form: str) -> str:
    """Behind numbers of the layer as it trains, whose kernel keeps no vote."""
    return r"\*" if form == "layer" else ""


def _pair(one: Line, two: Line | None, key: str | None) -> str:
    """A time at one thread and at two; of the faster float form where `key` is None."""
    shown = []
    for line in (one, two):
        if line is not None:
            form = line["best_float"] if key is None else ""
            shown.append(_short(line[key or f"{form}_ms"]) + _mark(form))
    return shown[0] + (f" ({shown[1]})" if shown[1:] else "")


def _ratio(one: Line, two: Line | None, key: str) -> str:
    return f"{one[key]:.3g}" + ("" if two is None else f" ({two[key]:.3g})")


def _short(number: float) -> str:
    return f"{number:.3g}" if number < 100 else f"{number:,.0f}"
