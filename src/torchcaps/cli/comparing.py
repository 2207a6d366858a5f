"""`torchcaps compare`: routings beside each other on one backbone."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from torchcaps.cli.tables import RESULTS, fill
from torchcaps.config import OPTION, DataConfig, read_field
from torchcaps.files import replace_text
from torchcaps.terminal import note, say_lines

if TYPE_CHECKING:
    from torchcaps.compare.comparison import Comparison
    from torchcaps.tables.budgets import Budget
    from torchcaps.tables.cells import Cell
    from torchcaps.tables.metrics import Record


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
    budget: Literal["full", "fast", "short", "cpu", "smoke"] = "cpu",
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
    from torchcaps.cli.training import report
    from torchcaps.compare.comparison import NAMED, Comparison, changed_files, choose_heads, settle_data
    from torchcaps.compare.costs import record_missing
    from torchcaps.compare.examined import record_examinations
    from torchcaps.data.catalogue import find, plain_name
    from torchcaps.models.registry import find_factory
    from torchcaps.tables.fill import Settings
    from torchcaps.tables.plan import plan
    from torchcaps.tables.records import read_records

    find(data.name)  # unknown names are said before anything runs
    find_factory(f"{backbone}.linear")
    if len(sweep) == 1:
        raise ValueError(f"--sweep {sweep[0]} needs values, such as --sweep optimiser.lr 0.01 0.03")
    settled = settle_data(data, frozenset(given))
    comparison = Comparison(backbone, data.name, loss, settled, sweep, fractions, depth)
    heads, path = choose_heads(routings), results / "runs.jsonl"
    cells = comparison.cells(heads)
    for cell in cells:
        assert cell.build is not None
        cell.build()  # a sweep over what there is not is said before anything runs
    if fractions:
        check_sweep(cells, budget, "data.fraction")
    if sweep:
        check_sweep(cells, budget, sweep[0])
        if sweep[0].startswith(OPTION) and not show:
            check_models(cells)
    for name, file in changed_files(cells, read_records(path)):
        note(f"{name}: {file} was changed since its runs, which are made anew")
    if costs:
        failed = record_missing(cells, path, device, note)
        cells = [cell for cell in cells if cell.name not in failed]

    fields = sorted(name.removeprefix("data.") for name in given if name.startswith("data.") and name not in NAMED)
    changes = [f"{name}={plain_name(str(read_field(data, name)))}" for name in fields]

    def finish(folder: Path) -> None:
        report(folder)
        write(comparison, heads, budget, results, changes, quiet=True)

    if not show:
        if data.download:
            from torchcaps.data import load_data

            load_data(dataclasses.replace(comparison.config(heads[0]).data, download=True, root=data.root))
        jobs = plan(cells, budget, seeds)
        note(f"{comparison.id}: {len(jobs)} runs with the budget {budget}")
        settings = Settings(path, out, device, data.root, max_hours, note, finish)
        fill(jobs, settings)
        if examine or depth:
            record_examinations(jobs, settings)
    write(comparison, heads, budget, results, changes)


def check_sweep(cells: Sequence[Cell], budget: Budget, field: str) -> None:
    """Raise ValueError where a budget sets the `field` that a sweep is over, so that rows were named wrongly."""
    from torchcaps.tables.budgets import apply_budget

    for cell in cells:
        assert cell.build is not None
        asked = cell.build()
        given, found = (read_field(each, field) for each in (asked, apply_budget(asked, budget, cell)))
        if field == "seed" or given != found:
            what = (
                "each row has seeds of its own" if field == "seed" else f"budget {budget} makes {found!r} of {given!r}"
            )
            raise ValueError(f"--sweep {field}: {what}; sweep another field, or give another --budget")


def check_models(cells: Sequence[Cell]) -> None:
    """Raise ValueError where the model of a cell cannot be built, before another cell has been trained for hours.

    Each distinct one is built without memory; twins are left to their turn, since their widths are searched for.
    """
    from torchcaps.tables.network import build_meta

    done = []
    for cell in cells:
        assert cell.build is not None
        config = cell.build()
        if config.model in done or config.model.name.endswith("-twin"):
            continue
        try:
            build_meta(config)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{cell.name}: {error}") from error
        done.append(config.model)


def write(
    comparison: Comparison,
    heads: Sequence[str],
    budget: Budget,
    results: Path,
    changes: Sequence[str] = (),
    quiet: bool = False,
) -> None:
    """Write the table of `heads` and of all others that have runs; and, unless it is to be done quietly, print that of
    `heads` and draw its picture.

    A page is of one budget and of the data with their `changes`, NAME=VALUE, which its file is named by.
    """
    from torchcaps.compare.page import collect, markdown
    from torchcaps.tables.records import read_records

    records = read_records(results / "runs.jsonl")
    every = collect(comparison, list_run(comparison, heads, budget, records), budget, records)
    path = results / "compare" / f"{name_page(comparison, budget, changes)}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, markdown(comparison, every, budget, changes))
    if quiet:
        return
    rows = [row for row in every if row.head.partition("@")[0] in heads]
    say_lines(markdown(comparison, rows, budget, changes))
    from torchcaps.compare.figures import draw, draw_shares  # which are not drawn quietly
    from torchcaps.inspect.figures import save_svg

    picture = path.with_name(f"{path.name.removesuffix('.md')}.svg")
    if comparison.fractions:
        save_svg(draw_shares(every), picture)
    elif any(row.cost is not None and row.accuracy is not None for row in every):
        save_svg(draw(every), picture)
    else:
        return
    note(f"{path} and {picture.name}")


def list_run(comparison: Comparison, heads: Sequence[str], budget: Budget, records: Sequence[Record]) -> list[str]:
    """Return `heads`, and among them, in the order of all, those that have runs of the budget beside."""
    from torchcaps.compare.comparison import all_heads
    from torchcaps.tables.budgets import apply_budget
    from torchcaps.tables.records import find_all_runs

    every, found = list(dict.fromkeys([*all_heads(), *heads])), set(heads)
    for cell in comparison.cells(every):
        assert cell.build is not None
        head = cell.name.partition("@")[0]
        if head not in found and find_all_runs(records, apply_budget(cell.build(), budget, cell), budget):
            found.add(head)
    return [head for head in every if head in found]


def name_page(comparison: Comparison, budget: Budget, changes: Sequence[str]) -> str:
    """Return the path of a page below results/compare, without its ending."""
    from torchcaps.compare.shares import suffix

    others = [*([] if budget == "cpu" else [budget]), *(re.sub(r"[^\w.=+]+", "_", each)[:60] for each in changes)]
    return "-".join([comparison.id + suffix(comparison), *others])
