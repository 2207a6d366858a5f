"""`torchcaps reproduce | table`: the tables of the papers, filled and shown."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

import torchcaps
from torchcaps.cli import reporting
from torchcaps.cli.filling import RESULTS, check_hours, fill
from torchcaps.config import Config
from torchcaps.files import replace_text
from torchcaps.plugins import own_files
from torchcaps.shell import typed
from torchcaps.tables.budget_names import FULL, SMOKE, Budget
from torchcaps.terminal import note, say_lines, show_time

if TYPE_CHECKING:
    from torchcaps.tables.cells import Table
    from torchcaps.tables.metrics import Record

FIELDS = {each.name for each in dataclasses.fields(Config)} - {"out", "device"}  # which `reproduce` has, too
NAME = tyro.conf.arg(metavar="PAPER/TABLE")


def reproduce(
    table: Annotated[Positional[str], NAME],
    cells: str = "*",
    seeds: int | None = None,
    budget: Budget = FULL,
    max_hours: float | None = None,
    dry_run: bool = False,
    out: Path = Path("runs"),
    results: Path = RESULTS,
    device: str = "auto",
    data_root: Path | None = None,
    part: str = "1/1",
    submit: Literal["no", "slurm", "local"] = "no",
    slurm: tuple[str, ...] = (),
) -> None:
    """Run the recipes of a table, each with several seeds; what is done is skipped, and what was cut goes on.

    For example: `torchcaps reproduce fm/table2 --cells ours-cifar10 --budget short --seeds 1`.

    Args:
        table: a name from `torchcaps list tables`, or a shell pattern
        cells: names of cells, a shell pattern
        seeds: runs of each cell, with the seeds 0, 1, ...; else as many as the recipe says
        budget: full (as the paper trains), fast (the paper's network, 30 epochs), short (8 epochs), cpu (narrowed),
            smoke (does it run?)
        max_hours: after which no further run is begun
        dry_run: say of each run what is ahead, by a few measured steps, and stop there
        out: folder in which the runs' own folders are made
        results: folder whose runs.jsonl receives a line for each finished run
        device: auto, cpu, cuda, mps
        data_root: folder of the data sets; else $TORCHCAPS_DATA, else the user's cache folder
        part: of the whole plan, finished runs among it: 3/16 is the third of 16, for machines that each do one; all/16
            with --submit
        submit: hand the part to SLURM, by submitit, or to a process of this machine (local), and return; all/16 is 16
            jobs. Each repeats this command, and goes on when it is put off
        slurm: settings of a job of SLURM, such as partition=gpu gpus_per_node=1 timeout_min=600
    """
    from torchcaps.papers import find_tables
    from torchcaps.tables.fill import Settings, say_ahead
    from torchcaps.tables.parts import read_part, take_part
    from torchcaps.tables.plan import choose_cells, plan
    from torchcaps.tables.records import RUNS

    tables = find_tables(table)
    jobs = plan(choose_cells(tables, cells), budget, seeds)
    if not jobs:
        raise ValueError(f"{table} has no cell {cells!r} to run: those are quoted, formulas, or cannot be reproduced")
    numbers, parts = read_part(part)
    check_hours(max_hours)
    if dry_run and submit != "no":
        raise ValueError(f"--dry-run submits nothing: leave out --submit {submit}, or --dry-run")
    if submit != "no":
        from torchcaps.cli.jobs import submit_parts

        words = ["reproduce", table, "--cells", cells, "--budget", budget, "--out", str(out), "--results", str(results)]
        words += ["--device", device, *(["--seeds", str(seeds)] if seeds is not None else [])]
        words += ["--max-hours", str(max_hours)] if max_hours is not None else []
        words += ["--data-root", str(data_root)] if data_root is not None else []
        words += own_files()
        for number, job in submit_parts(words, numbers, parts, out / "jobs", submit, slurm):
            note(f"{table}: part {number}/{parts} is job {job}; what it says is in {out / 'jobs'}")
        return
    if slurm:
        raise ValueError(f"--slurm {slurm[0]} is of jobs that are submitted: add --submit slurm")
    if len(numbers) > 1:
        raise ValueError(f"--part {part} is of jobs that are submitted: add --submit slurm, or name one part")
    jobs = take_part(jobs, numbers[0], parts)
    settings = Settings(results / RUNS, out, device, data_root, max_hours, note, reporting.report)
    of = f" (part {part} of the plan)" if parts > 1 else ""
    note(f"{table}: {len(jobs)} runs with the budget {budget}{of}")
    if dry_run:
        note(f"{table}: about {show_time(say_ahead(jobs, settings))} in all on this machine")
        return
    outcome = fill(jobs, settings)
    draw_pictures(tables, settings.records, out, data_root)
    again = ["torchcaps", "table", table, *own_files(), *(["--results", str(results)] if results != RESULTS else [])]
    note(f"{table}: {len(jobs) - outcome.left} of {len(jobs)} runs are done; to see them: {typed(again)}")
    outcome.check()


def check_reproduce(args: Sequence[str]) -> None:
    """Raise ValueError for a flag of a recipe, which `torchcaps train` takes and `reproduce` does not."""
    table = args[0] if args and not args[0].startswith("-") else "PAPER/TABLE"
    known = set(inspect.signature(reproduce).parameters)
    for word in args:
        name = word[2:].partition("=")[0]
        if word.startswith("--") and ("." in name or (name.replace("-", "_") in FIELDS and name not in known)):
            raise ValueError(
                f"--{name} is of a recipe, and cells are filled by their recipes as these are: torchcaps train "
                f"{table}/CELL --{name} ... trains one with another value (torchcaps list recipes '{table}/*')"
            )


def draw_pictures(tables: Sequence[Table], lines: Path, out: Path, root: Path | None = None) -> None:
    """Draw what cells of `tables` show as pictures, of the runs in `out` that have a line and no picture yet."""
    from torchcaps.tables.pictures import draw_missing
    from torchcaps.tables.records import read_records

    records = read_records(lines)
    for each in tables:
        for path in draw_missing(each, records, lines.parent, out, root):
            note(str(path))


def table(
    table: Annotated[Positional[str], NAME],
    format: Literal["md", "html"] = "md",
    write: bool = False,
    results: tuple[Path, ...] = (RESULTS,),
    out: Path = Path("runs"),
    data_root: Path | None = None,
) -> None:
    """Show a table of a paper, with what was measured beside what was published.

    For example: `torchcaps table fm/table2`.

    Args:
        table: a name from `torchcaps list tables`, or a shell pattern
        format: what is printed: md (Markdown), html
        write: write results/tables/PAPER/TABLE.md and .html too, of a figure whose curves have runs .svg, and of cells
            that are pictures in print .png
        results: folders of runs.jsonl, of several machines, whose lines are read one after the other; what is written
            goes to the first; without it the results of a checkout are shown
        out: folder of the runs' folders, of which pictures are drawn that are not there yet
        data_root: folder of the data sets; else $TORCHCAPS_DATA, else the user's cache folder
    """
    from torchcaps.papers import find_tables
    from torchcaps.tables.pictures import list_pictures
    from torchcaps.tables.records import RUNS, merge_records, read_records
    from torchcaps.tables.render import html, markdown, view
    from torchcaps.tables.summary import this_machine

    home, *others = results
    shown_of = home if write else find_results(home)
    for each in others:
        if not (each / RUNS).exists():
            raise FileNotFoundError(f"there is no {each / RUNS}: --results takes folders that hold lines")
    records = merge_records([read_records(each / RUNS) for each in (shown_of, *others)])
    machine = this_machine() if any(each.get("budget") == SMOKE for each in records) else None
    tables = find_tables(table)
    if write:
        draw_pictures(tables, home / RUNS, out, data_root)
    for each in tables:
        pictures = [picture for picture in list_pictures(each, records, shown_of) if picture.path.exists()]
        shown, path = view(each, records, machine, pictures, data_root), home / "tables" / each.id
        drawn = write and draw_figure(each, records, path.with_name(f"{path.name}.svg"))
        if drawn:
            shown = shown._replace(picture=f"{path.name}.svg")
        texts = {"md": markdown(shown), "html": html(shown)}
        say_lines(texts[format])
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            for suffix, text in texts.items():
                replace_text(path.with_name(f"{path.name}.{suffix}"), text)
                note(f"{path}.{suffix}")
        if drawn:
            note(f"{path}.svg")


def draw_figure(table: Table, records: Sequence[Record], path: Path) -> bool:
    """Write the figure that `table` stands for to `path`, and return whether there is one; imports matplotlib."""
    from torchcaps.tables.figures import write_figure

    return write_figure(table, records, path)


def find_results(results: Path) -> Path:
    """Return the folder `results` where it has lines, else that of the checkout which the package is in; says what
    it takes.

    Without either, all that is measured would be shown as not run.
    """
    from torchcaps.tables.records import RUNS

    if (results / RUNS).exists():
        return results
    checkout = Path(torchcaps.__file__).parents[2] / "results"
    if results == RESULTS and (checkout / RUNS).exists():
        note(f"{results / RUNS} is not there: the results are those of {checkout}")
        return checkout
    note(f"{results / RUNS} is not there, so nothing is shown as run: --results names the folder that holds it")
    return results
