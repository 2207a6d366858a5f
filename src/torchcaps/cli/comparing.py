"""`torchcaps compare`: routings beside each other on one backbone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from torchcaps.cli import reporting
from torchcaps.cli.filling import RESULTS, fill
from torchcaps.config import DataConfig
from torchcaps.fields import read_field
from torchcaps.names import LINEAR
from torchcaps.tables.budget_names import EVIDENCE, Budget
from torchcaps.terminal import note

if TYPE_CHECKING:
    from torchcaps.compare.comparison import Comparison
    from torchcaps.tables.cells import Cell
    from torchcaps.tables.fill import Outcome, Settings


def rename_flags(args: Sequence[str]) -> list[str]:
    """Return `args` with --data NAME and --data-root PATH, as they were called first, by the names that they have
    now.
    """
    names = {"--data": "--data.name", "--data-root": "--data.root"}
    split = (word.partition("=") for word in args)
    return [names.get(word, word) + joined + value for word, joined, value in split]


def compare(
    backbone: str = "small-resnet",
    data: DataConfig = DataConfig("fashion-mnist"),  # noqa: B008 - it is frozen
    routings: tuple[str, ...] = (),
    sweep: tuple[str, ...] = (),
    fractions: tuple[float, ...] = (),
    depth: tuple[int, ...] = (),
    seeds: int = 3,
    loss: Literal["shared", "own"] = "shared",
    budget: Budget = EVIDENCE,
    costs: bool = False,
    examine: bool = False,
    show: bool = False,
    max_hours: float | None = None,
    out: Path = Path("runs"),
    results: Path = RESULTS,
    device: str = "auto",
    given: Annotated[tuple[str, ...], tyro.conf.Suppress] = (),
) -> None:
    """Compare routings on one backbone and data set: accuracy, parameters, multiply-adds, time and memory.

    The linear head of a plain network, its convolutional twin and uniform routing are always among them. What is done
    is skipped, and what was cut goes on. The table is written to RESULTS/compare after each run, and its picture at the
    end; a file is of one budget and one kind of data, and keeps the rows of heads that were run before.

    For example: `torchcaps compare --data.name digits --routings dynamic fm --seeds 1`.

    Args:
        backbone: small-resnet, or a timm model
        data: as of `torchcaps train`
        routings: names from `torchcaps list routings`, linear, or patterns such as 'xn*'; else all; plain networks of
            timm's too, such as resnet18.linear
        sweep: a field of the configuration and values of it, each of which makes a row: optimiser.lr 0.01 0.03
        fractions: shares of the training data, of each class alike, each of which makes a row: 0.01 0.05 0.1 1
        depth: layers of capsules, each of which makes a row, with activations and gradients by layer: 1 2 4
        seeds: runs of each, with the seeds 0, 1, ...
        loss: shared (cross-entropy over activations with a learnt scale), own (that of each paper)
        budget: full (60 epochs), fast (30), short (8), cpu (10, selected on validation), smoke (does it run?)
        costs: measure times and memory first, of those that have none or older counts; nothing else should run then;
            what cannot be measured is said, and is not trained
        examine: ask what routing does in each finished run (see `torchcaps examine`), for a second table
        show: train nothing, only write the table of what is there
        max_hours: after which no further run is begun
        out: folder in which the runs' own folders are made
        results: folder whose runs.jsonl receives a line for each finished run
        device: auto, cpu, cuda, mps
        given: names of the fields that flags gave, filled in by the command line
    """
    from torchcaps.compare.checks import check_cells
    from torchcaps.compare.comparison import Comparison, changed_files
    from torchcaps.compare.costs import record_missing
    from torchcaps.compare.heads import choose_heads
    from torchcaps.compare.usual import NAMED, settle_data
    from torchcaps.compare.writing import write
    from torchcaps.data.catalogue import find, plain_name
    from torchcaps.models.registry import find_factory
    from torchcaps.tables.fill import Settings
    from torchcaps.tables.records import RUNS, read_records

    find(data.name)  # unknown names are said before anything runs
    find_factory(f"{backbone}.{LINEAR}")
    if len(sweep) == 1:
        raise ValueError(f"--sweep {sweep[0]} needs values, such as --sweep optimiser.lr 0.01 0.03")
    settled = settle_data(data, frozenset(given))
    comparison = Comparison(backbone, data.name, loss, settled, sweep, fractions, depth)
    heads, path = choose_heads(routings), results / RUNS
    cells = comparison.cells(heads)
    check_cells(comparison, cells, budget, trained=not show)
    for name, file in changed_files(cells, read_records(path)):
        note(f"{name}: {file} was changed since its runs, which are made anew")
    if costs:
        failed = record_missing(cells, path, device, note)
        cells = [cell for cell in cells if cell.name not in failed]

    fields = sorted(name.removeprefix("data.") for name in given if name.startswith("data.") and name not in NAMED)
    changes = [f"{name}={plain_name(str(read_field(data, name)))}" for name in fields]

    def finish(folder: Path) -> None:
        reporting.report(folder)
        write(comparison, heads, budget, results, changes, quiet=True)

    outcome = None
    if not show:
        if data.download:
            from torchcaps.data import load_data

            load_data(dataclasses.replace(comparison.config(heads[0]).data, download=True, root=data.root))
        settings = Settings(path, out, device, data.root, max_hours, note, finish)
        outcome = _run(comparison, cells, budget, seeds, settings, examined=examine or bool(depth))
    write(comparison, heads, budget, results, changes)
    if outcome is not None:
        outcome.check()


def _run(
    comparison: Comparison, cells: Sequence[Cell], budget: Budget, seeds: int, settings: Settings, examined: bool
) -> Outcome:
    """Train what has no run yet, and have it `examined` where that is asked; returns what came of it."""
    from torchcaps.compare.examined import record_examinations
    from torchcaps.tables.plan import plan

    jobs = plan(cells, budget, seeds)
    note(f"{comparison.id}: {len(jobs)} runs with the budget {budget}")
    outcome = fill(jobs, settings)
    if examined:
        record_examinations(jobs, settings)
    return outcome
