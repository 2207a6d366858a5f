"""The tables of the papers, with what was measured beside what was published, as Markdown and as a page of HTML."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from torchcaps.files import POLICY
from torchcaps.markdown import markdown_table
from torchcaps.tables.budget_names import COUNT, FORMULA, FULL, REPRODUCTIONS
from torchcaps.tables.cells import Cell, Quoted, Table
from torchcaps.tables.metrics import Record
from torchcaps.tables.pictures import Picture
from torchcaps.tables.records import name_machine
from torchcaps.tables.summary import Summary, describe_gap, difference, evidence, reproduction

HEADER = ("row", "column", "published", "ours", "best", "difference", "evidence on a CPU")
LEGEND = (
    "Ours: mean ± standard deviation (runs) of full training, or of the budget that is named. Difference: ours less "
    "published, a mean against our mean, a best against our best of as many runs. Evidence on a CPU is of a narrowed "
    "network and few epochs, and no reproduction."
)
VIEWPORT = '<meta name="viewport" content="width=device-width, initial-scale=1">'  # of a telephone, too
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
:root { color-scheme: light dark }
table { border-collapse: collapse } th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid #8886 }
img { max-width: 100%; background: #fff } td { vertical-align: top } .scroll { overflow-x: auto }
"""


class View(NamedTuple):
    """A table as text."""

    title: str
    metrics: str
    command: str  # that fills the table; empty where nothing is to be run
    rows: list[tuple[str, ...]]  # as `HEADER`
    notes: list[str]
    runs: list[str]  # where the numbers come from
    picture: str = ""  # file beside the page; empty where nothing is drawn
    pictures: tuple[tuple[str, str], ...] = ()  # files beside the page that cells stand for, and what they show


def view(
    table: Table,
    records: Sequence[Record],
    machine: dict[str, Any] | None = None,
    pictures: Sequence[Picture] = (),
    root: Path | None = None,
) -> View:
    """Return what `table` shows of the lines.

    Args:
        table, records: the table, and all lines.
        machine: as in `summary.describe_gap`.
        pictures: of its cells, those that are drawn (`torchcaps.tables.pictures`).
        root: as in `summary.describe_gap`.
    """
    notes: list[str] = []
    rows, used = [], []
    files = {each.path.name: each.caption for each in pictures}
    for cell in table.cells:
        mark = ""
        if cell.note:
            if cell.note not in notes:
                notes.append(cell.note)
            mark = f" [{notes.index(cell.note) + 1}]"
        ours, cpu = reproduction(cell, records), evidence(cell, records)
        used += [each for each in (ours, cpu) if each is not None]
        published = ", ".join(map(str, cell.published)) or "-"
        shown, best, gap = _measured(cell, ours, records, machine, root)
        drawn = [(each.budget, list(files).index(each.path.name) + 1) for each in pictures if each.cell == cell.name]
        shown, small = _drawn(shown, cell, ours, drawn), _drawn(_cpu(cell, cpu), cell, cpu, drawn)
        rows.append((cell.row, cell.column + mark, published, shown, best, gap, small))
    title = f"{table.paper.citation}, {table.printed}: {table.title}"
    metrics = dict.fromkeys(
        f"{each.metric.name} ({each.metric.unit})" if each.metric.unit else each.metric.name for each in table.cells
    )
    command = f"torchcaps reproduce {table.id}" if any(cell.build for cell in table.cells) else ""
    return View(title, "; ".join(metrics), command, rows, notes, list(_sources(used)), "", tuple(files.items()))


def _drawn(text: str, cell: Cell, runs: Summary | None, drawn: Sequence[tuple[str, int]]) -> str:
    """Return `text`, what a cell shows of its `runs`, and the number of its picture where print has one."""
    if cell.picture is None or runs is None:
        return text
    number = next((number for budget, number in drawn if budget == runs.budget), None)
    return f"picture {number}; {text}" if number else f"not drawn, its run or data are not at hand; {text}"


def _measured(
    cell: Cell, ours: Summary | None, records: Sequence[Record], machine: dict[str, Any] | None, root: Path | None
) -> tuple[str, str, str]:
    """Return mean, best and difference; or, in place of the mean, why there is none."""
    if ours is None:
        return describe_gap(cell, records, machine, root), "", ""
    shown = _mean(cell, ours)
    if ours.budget in REPRODUCTIONS and ours.budget != FULL:
        shown = f"{ours.budget}: {shown}"
    if not ours.values:
        return shown, "", ""
    best = cell.metric.show(ours.best()) if len(ours.values) > 1 else ""
    gaps = [gap for gap in (difference(each, ours) for each in cell.published) if gap is not None]
    return shown, best, ", ".join(_signed(gap, cell.metric.digits) for gap in gaps)


def _signed(gap: float, digits: int) -> str:
    """Return it with its sign, but for what rounds to 0."""
    text = f"{gap:+.{digits}f}"
    return text if text.strip("+-0.") else text[1:]


def _mean(cell: Cell, summary: Summary) -> str:
    """Return mean ± standard deviation (runs); of runs that failed, how many and why."""
    parts = []
    if summary.values:
        deviation = "" if summary.std is None else f" ± {cell.metric.show(summary.std)}"
        count = {COUNT: "", FORMULA: ", by formula"}.get(summary.budget, f" ({len(summary.values)})")
        parts.append(f"{cell.metric.show(summary.mean)}{deviation}{count}")
    elif not summary.failures:
        parts.append(f"{cell.metric.name} is not in the runs")
    if summary.failures:
        parts.append(f"{len(summary.failures)} failed: {summary.failures[0]}")
    return "; ".join(parts)


def _cpu(cell: Cell, cpu: Summary | None) -> str:
    if cpu is None or isinstance(cell.how, Quoted):
        return ""
    return f"{_mean(cell, cpu)}, cpu{f', {cpu.width}' if cpu.width else ''}"


def _sources(used: Sequence[Summary]) -> Iterator[str]:
    """Yield one line for each budget, width, machine, precision and version that the runs of a table come from."""
    groups: dict[tuple[str, ...], dict[tuple, Record]] = defaultdict(dict)
    for summary in used:
        for record in summary.records:
            where = record.get("environment", {})
            commit = where.get("commit") or {}
            state = f"{commit.get('hash', 'unknown')[:10]}{' with changes' if commit.get('dirty') else ''}"
            precision = [str(where["precision"])] if "precision" in where else []  # of a run, not of a count
            place = (name_machine(where), *precision, f"torch {where.get('torch')}", f"commit {state}")
            groups[summary.budget, summary.width, *place][record.get("config_hash"), record.get("seed")] = record
    for (budget, width, *place), lines in groups.items():
        kind = f"{budget} ({width})" if width else budget
        seconds = [record["seconds"] for record in lines.values() if "seconds" in record]
        time = f", {mean(seconds) / 60:.1f} min a run" if seconds else ""
        yield f"{kind}: {len(lines)} run(s){time}; {'; '.join(place)}"


def markdown(shown: View) -> str:
    """Return the page as Markdown."""
    lines = [f"# {shown.title}", "", f"Unit: {shown.metrics}. {LEGEND}", ""]
    if shown.command:
        lines += [f"    {shown.command}", ""]
    lines.append(markdown_table(HEADER, shown.rows))
    if shown.picture:
        lines += ["", f"![{shown.title}]({shown.picture})"]
    for number, (file, caption) in enumerate(shown.pictures, 1):
        lines += ["", f"![picture {number}]({file})", "", f"*Picture {number}: {caption}.*"]
    for heading, items in (("Notes", shown.notes), ("Runs", shown.runs)):
        if items:
            lines += ["", f"{heading}:", "", *(f"{number}. {item}" for number, item in enumerate(items, 1))]
    return "\n".join(lines) + "\n"


def html(shown: View) -> str:
    """Return the same as a page of HTML, without scripts."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in HEADER)
    rows = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in shown.rows)
    lists = "".join(
        f"<h2>{heading}</h2>\n<ol>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ol>\n"
        for heading, items in (("Notes", shown.notes), ("Runs", shown.runs))
        if items
    )
    command = f"<pre>{escape(shown.command)}</pre>\n" if shown.command else ""
    image = f'<p><img src="{escape(shown.picture)}" alt="the figure, drawn from these runs"></p>\n'
    picture = image if shown.picture else ""
    for number, (file, caption) in enumerate(shown.pictures, 1):
        said = f"Picture {number}: {escape(caption)}."
        picture += f'<figure><img src="{escape(file)}" alt="{said}"><figcaption>{said}</figcaption></figure>\n'
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n{POLICY}\n{VIEWPORT}\n'
        f"<title>{escape(shown.title)}</title>\n"
        f"<style>{STYLE}</style>\n<h1>{escape(shown.title)}</h1>\n"
        f"<p>Unit: {escape(shown.metrics)}. {escape(LEGEND)}</p>\n{command}"
        f'<div class="scroll"><table>\n<tr>{head}</tr>\n{rows}\n</table></div>\n{picture}{lists}</html>\n'
    )
