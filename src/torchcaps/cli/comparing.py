"""`torchcaps compare`: routings beside each other on one backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torchcaps.cli.tables import RESULTS, fill, say

if TYPE_CHECKING:
    from torchcaps.compare.comparison import Comparison
    from torchcaps.tables.budgets import Budget


def compare(
    backbone: str = "small-resnet",
    data: str = "fashion-mnist",
    routings: tuple[str, ...] = (),
    seeds: int = 3,
    loss: Literal["shared", "own"] = "shared",
    budget: Literal["full", "fast", "cpu", "smoke"] = "cpu",
    costs: bool = False,
    show: bool = False,
    max_hours: float | None = None,
    out: Path = Path("runs"),
    results: Path = RESULTS,
    device: str = "auto",
    data_root: Path | None = None,
) -> None:
    """Compare routings on one backbone and data set: accuracy, parameters, multiply-adds, time and memory.

    The linear head of a plain network and uniform routing are always among them. What is done is skipped, and what was
    cut goes on. The table and its picture are written to RESULTS/compare.

    Args:
        backbone: small-resnet, or a timm model
        data: a name from `torchcaps list data`
        routings: names from `torchcaps list routings`, or linear; else all
        seeds: runs of each, with the seeds 0, 1, ...
        loss: shared (cross-entropy over activations with a learnt scale), own (that of each paper)
        budget: full (60 epochs), fast (30 in large batches), cpu (10 epochs), smoke (does it run?)
        costs: measure times and memory too, of those that have none or older counts; nothing else should run meanwhile
        show: train nothing, only write the table of what is there
        max_hours: after which no further run is begun
        out: folder in which the runs' own folders are made
        results: folder whose runs.jsonl receives a line for each finished run
        device: auto, cpu, cuda, mps
        data_root: folder of the data sets; else $TORCHCAPS_DATA, else the user's cache folder
    """
    from torchcaps.cli.training import report
    from torchcaps.compare.comparison import Comparison, choose_heads
    from torchcaps.compare.costs import counts_are_current, find_costs, record_costs
    from torchcaps.data.catalogue import find
    from torchcaps.models.registry import find_factory
    from torchcaps.tables.fill import Settings, plan
    from torchcaps.tables.records import read_records

    find(data)  # unknown names are said before anything runs
    find_factory(f"{backbone}.linear")
    comparison, heads, path = Comparison(backbone, data, loss), choose_heads(routings), results / "runs.jsonl"
    cells = comparison.cells(heads)
    if not show:
        jobs = plan(cells, budget, seeds)
        say(f"{comparison.id}: {len(jobs)} runs with the budget {budget}")
        fill(jobs, Settings(path, out, device, data_root, max_hours, say, report))
    if costs:
        known = read_records(path)
        measured = [cell for cell in cells if (cost := find_costs(known, cell)) and counts_are_current(cost)]
        record_costs([cell for cell in cells if cell not in measured], path, device)
    write(comparison, heads, budget, results)


def write(comparison: Comparison, heads: Sequence[str], budget: Budget, results: Path) -> None:
    """Print the table, and write it and its picture."""
    from torchcaps.compare.page import collect, draw, markdown
    from torchcaps.tables.records import read_records

    rows = collect(comparison, heads, budget, read_records(results / "runs.jsonl"))
    text = markdown(comparison, rows, budget)
    print(text, end="")
    path = results / "compare" / f"{comparison.id}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    if any(row.cost is not None and row.accuracy is not None for row in rows):
        draw(rows).savefig(path.with_suffix(".svg"))
        say(f"{path} and {path.with_suffix('.svg').name}")
