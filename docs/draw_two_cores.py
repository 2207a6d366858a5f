"""Draw pictures/two-cores.svg: accuracy against core-hours of what was run at full size, from results/runs.jsonl.

python docs/draw_two_cores.py

`docs/blocks.py` writes the tables of the same page (reproduced.md), and this picture with them.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, NamedTuple

from torchcaps.inspect.figures import save_svg, style
from torchcaps.papers import list_tables
from torchcaps.tables.budget_names import REPRODUCTIONS
from torchcaps.tables.cells import Cell, Table, Train
from torchcaps.tables.metrics import TRAIN_ACCURACY, TRAIN_LOSS, Record
from torchcaps.tables.records import read_records
from torchcaps.tables.summary import Summary, difference, summarise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
RUNS = HERE.parent / "results" / "runs.jsonl"
PICTURE = HERE / "pictures" / "two-cores.svg"
MARKERS = "os^D"  # each serves the ten colours once
SHORT = 2.0  # percentage points below what was published, behind which a reason is looked for
LINE, LOWEST = 0.16, 2.6  # inches: of a line of a legend, and of a panel
Row = tuple[str, ...]


class Run(NamedTuple):
    """A cell that runs of one budget fill."""

    table: Table
    cell: Cell
    found: Summary

    @property
    def hours(self) -> float:
        return mean_hours(self.found.records)

    @property
    def hashes(self) -> set[str]:
        """What was computed, by name; none of records that do not say."""
        return {each["config_hash"] for each in self.found.records if "config_hash" in each}

    @property
    def name(self) -> str:
        return f"{self.table.paper.citation}: {self.cell.row}, {self.cell.column} ({self.found.budget})"


def mean_hours(records: Iterable[Record]) -> float:
    """Of runs that ended; those that failed say no time."""
    return mean(core_hours(each) for each in records if "failure" not in each)


def core_hours(record: Record) -> float:
    """Of one run: what its threads computed, or where an older record does not say, the time that they were held."""
    if record.get("cpu_seconds") is not None:
        return record["cpu_seconds"] / 3600
    return record["seconds"] * record["environment"].get("threads", 1) / 3600


def tested(table: Table) -> list[Cell]:
    """Cells that training fills with what the test split says."""
    return [
        cell
        for cell in table.cells
        if isinstance(cell.how, Train) and cell.metric not in (TRAIN_ACCURACY, TRAIN_LOSS) and cell.metric.unit == "%"
    ]


@cache
def runs() -> tuple[Run, ...]:
    """All cells that have runs at full size, as the papers have their tables."""
    records = read_records(RUNS)
    return tuple(
        Run(table, cell, found)
        for table in list_tables()
        for cell in tested(table)
        for budget in REPRODUCTIONS
        if (found := summarise(cell, budget, records)) is not None and found.values
    )


def cells() -> Iterator[Row]:
    """What was run: published, ours, the difference, and what a run took."""
    yield (
        "table",
        "row",
        "column",
        "measure (%)",
        "budget",
        "published",
        "ours",
        "difference",
        "seeds",
        "core-hours a run",
    )
    seen: set[str] = set()  # what fills several cells stands once
    for run in runs():
        if run.hashes & seen:
            continue
        seen |= run.hashes
        show, std = run.cell.metric.show, run.found.std
        ours = show(run.found.mean) + ("" if std is None else f" ± {show(std)}")
        link = f"[{run.table.paper.citation}, {run.table.printed}](../results/tables/{run.table.id}.md)"
        published = ", ".join(map(str, run.cell.published)) or "-"
        seeds, hours = str(len(run.found.values)), f"{run.hours:.1f}"
        what = (link, run.cell.row, run.cell.column, run.cell.metric.name, run.found.budget)
        yield *what, published, ours, differences(run), seeds, hours


def differences(run: Run) -> str:
    """Ours less theirs, in bold where ours is short by more than `SHORT`."""
    shown = []
    for each in run.cell.published:
        apart = difference(each, run.found)
        if apart is not None:
            text = f"{apart:+.{run.cell.metric.digits}f}"
            shown.append(f"**{text}**" if (apart if run.cell.metric.lower else -apart) > SHORT else text)
    return ", ".join(shown) or "-"


def missing() -> Iterator[Row]:
    """Of each table how many of its cells have a run at full size."""
    yield "table", "cells that training fills", "run", "not run"
    done = [(run.table.id, run.cell.name) for run in runs()]
    for table in list_tables():
        names = {(table.id, cell.name) for cell in tested(table)}
        if names:
            link = f"[{table.paper.citation}, {table.printed}](../results/tables/{table.id}.md)"
            some = len(names & {*done})
            yield link, str(len(names)), str(some), str(len(names) - some)


def draw() -> Figure:
    """A panel for each data set: a mark for each network, and what was published as a line that ends in it."""
    from matplotlib.figure import Figure

    panels: dict[str, list[Run]] = {}
    for run in runs():
        assert isinstance(run.cell.how, Train)
        panels.setdefault(run.cell.how.build().data.name, []).append(run)
    taken = [run.hours for run in runs()]
    hours = min(taken) / 1.5, max(taken) * 1.5  # of all panels
    heights = [max(LOWEST, LINE * (_label(held).count("\n") + 2)) for held in panels.values()]  # as high as its legend
    with style():
        figure = Figure(figsize=(8.4, sum(heights)), layout="constrained")
        places = figure.add_gridspec(len(panels), 1, height_ratios=heights)
        for number, (data, held) in enumerate(panels.items()):
            _draw_panel(figure.add_subplot(places[number], title=data), held, hours)
    return figure


def _label(held: Sequence[Run]) -> str:
    """Return the names of runs below each other, in lines that a legend has room for."""
    return "\n".join(textwrap.fill(run.name, 42) for run in _distinct(held))


def _draw_panel(axes: Axes, held: Sequence[Run], hours: tuple[float, float]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    for number, run in enumerate(_distinct(held)):
        colour, marker = f"C{number % 10}", MARKERS[number // 10]
        ours = _accuracy(run.cell, run.found.mean)
        label = _label([run])
        full = colour if len(run.found.values) > 1 else "none"  # a single seed is an empty mark
        axes.errorbar(run.hours, ours, run.found.std, color=colour, fmt=marker, ms=6, mfc=full, label=label)
        for each in run.cell.published:
            if each.number is not None:
                value = _accuracy(run.cell, each.number)
                axes.axhline(value, color=colour, lw=1, ls=":" if each.kind == "best" else "--")
                axes.plot(hours[1], value, marker, color=colour, ms=6, mfc="none", clip_on=False, zorder=3)
    axes.set_xscale("log")
    axes.set(xlim=hours, xlabel="core-hours of a run", ylabel="test accuracy (%)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(y=0.2)
    axes.set_ylim(top=min(axes.get_ylim()[1], 100))
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.03, 1.02), borderaxespad=0)


def _distinct(held: Sequence[Run]) -> list[Run]:
    """Each run once, where cells of several tables share it: that with a published value first."""
    kept: dict[tuple[int, ...], Run] = {}
    for run in sorted(held, key=lambda run: not run.cell.published):
        kept.setdefault(tuple(map(id, run.found.records)), run)
    return [run for run in held if run in kept.values()]


def _accuracy(cell: Cell, value: float) -> float:
    return 100 - value if cell.metric.lower else value


def svg() -> str:
    """The picture, the same text for the same lines."""
    file = io.StringIO()
    save_svg(draw(), file)
    return file.getvalue()


def main() -> None:
    PICTURE.write_text(svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
