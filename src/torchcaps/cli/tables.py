"""`torchcaps reproduce | table`: the tables of the papers, filled and shown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

import torchcaps
from torchcaps.shell import typed

if TYPE_CHECKING:
    from torchcaps.tables.cells import Table
    from torchcaps.tables.fill import Job, Settings

RESULTS = Path("results")
NAME = tyro.conf.arg(metavar="PAPER/TABLE")


def reproduce(
    table: Annotated[Positional[str], NAME],
    cells: str = "*",
    seeds: int | None = None,
    budget: Literal["full", "fast", "cpu", "smoke"] = "full",
    max_hours: float | None = None,
    out: Path = Path("runs"),
    results: Path = RESULTS,
    device: str = "auto",
    data_root: Path | None = None,
) -> None:
    """Run the recipes of a table, each with several seeds; what is done is skipped, and what was cut goes on.

    Args:
        table: a name from `torchcaps list tables`, or a shell pattern
        cells: names of cells, a shell pattern
        seeds: runs of each cell, with the seeds 0, 1, ...; else as many as the recipe says
        budget: full (as the paper trains), fast (ten minutes on one GPU), cpu (narrowed), smoke (does it run?)
        max_hours: after which no further run is begun
        out: folder in which the runs' own folders are made
        results: folder whose runs.jsonl receives a line for each finished run
        device: auto, cpu, cuda, mps
        data_root: folder of the data sets; else $TORCHCAPS_DATA, else the user's cache folder
    """
    from torchcaps.cli.training import report
    from torchcaps.papers import find_tables
    from torchcaps.tables.fill import Settings, choose_cells, plan

    tables = find_tables(table)
    jobs = plan(choose_cells(tables, cells), budget, seeds)
    if not jobs:
        raise ValueError(f"{table} has no cell {cells!r} to run: those are quoted, formulas, or cannot be reproduced")
    settings = Settings(results / "runs.jsonl", out, device, data_root, max_hours, say, report)
    say(f"{table}: {len(jobs)} runs with the budget {budget}")
    left = fill(jobs, settings)
    draw_pictures(tables, settings.records, out, data_root)
    again = ["torchcaps", "table", table, *(["--results", str(results)] if results != RESULTS else [])]
    say(f"{table}: {len(jobs) - left} of {len(jobs)} runs are done; to see them: {typed(again)}")


def draw_pictures(tables: Sequence[Table], lines: Path, out: Path, root: Path | None = None) -> None:
    """Draw what cells of `tables` show as pictures, of the runs in `out` that have a line and no picture yet."""
    from torchcaps.tables.pictures import draw_missing
    from torchcaps.tables.records import read_records

    records = read_records(lines)
    for each in tables:
        for path in draw_missing(each, records, lines.parent, out, root):
            say(str(path))


def fill(jobs: Sequence[Job], settings: Settings) -> int:
    """Do the jobs, and return how many are left; an interruption says how to go on."""
    from torchcaps.tables.fill import run_all
    from torchcaps.train import Interrupted

    if settings.hours is not None and settings.hours < 0:
        raise ValueError(f"max_hours is {settings.hours}; it must be 0 or above")
    try:
        return run_all(jobs, settings)
    except Interrupted as stop:
        raise Interrupted(f"{stop}; the same command goes on from there") from None


def table(
    table: Annotated[Positional[str], NAME],
    format: Literal["md", "html"] = "md",
    write: bool = False,
    results: Path = RESULTS,
    out: Path = Path("runs"),
    data_root: Path | None = None,
) -> None:
    """Show a table of a paper, with what was measured beside what was published.

    Args:
        table: a name from `torchcaps list tables`, or a shell pattern
        format: what is printed: md (Markdown), html
        write: write results/tables/PAPER/TABLE.md and .html too, of a figure whose curves have runs .svg, and of cells
            that are pictures in print .png
        results: folder of runs.jsonl, and of what is written; without it the results of a checkout are shown
        out: folder of the runs' folders, of which pictures are drawn that are not there yet
        data_root: folder of the data sets; else $TORCHCAPS_DATA, else the user's cache folder
    """
    from torchcaps.papers import find_tables
    from torchcaps.tables.figures import draw, save
    from torchcaps.tables.pictures import list_pictures
    from torchcaps.tables.records import read_records
    from torchcaps.tables.render import html, markdown, view
    from torchcaps.tables.summary import this_machine

    shown_of = results if write else find_results(results)
    records = read_records(shown_of / "runs.jsonl")
    machine = this_machine() if any(each.get("budget") == "smoke" for each in records) else None
    tables = find_tables(table)
    if write:
        draw_pictures(tables, results / "runs.jsonl", out, data_root)
    for each in tables:
        pictures = [picture for picture in list_pictures(each, records, shown_of) if picture.path.exists()]
        shown, path = view(each, records, machine, pictures), results / "tables" / each.id
        figure = draw(each, records) if write else None
        if figure is not None:
            shown = shown._replace(picture=f"{path.name}.svg")
        texts = {"md": markdown(shown), "html": html(shown)}
        print(texts[format], end="")
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            for suffix, text in texts.items():
                path.with_suffix(f".{suffix}").write_text(text, encoding="utf-8")
                say(f"{path}.{suffix}")
        if figure is not None:
            save(figure, path.with_suffix(".svg"))
            say(f"{path}.svg")


def find_results(results: Path) -> Path:
    """The folder `results` where it has lines, else that of the checkout which the package is in; says what it takes.

    Without either, all that is measured would be shown as not run.
    """
    if (results / "runs.jsonl").exists():
        return results
    checkout = Path(torchcaps.__file__).parents[2] / "results"
    if results == RESULTS and (checkout / "runs.jsonl").exists():
        say(f"{results / 'runs.jsonl'} is not there: the results are those of {checkout}")
        return checkout
    say(f"{results / 'runs.jsonl'} is not there, so nothing is shown as run: --results names the folder that holds it")
    return results


def say(text: str) -> None:
    print(text, file=sys.stderr)
