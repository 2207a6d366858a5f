"""Write the blocks of README and docs that hold measured numbers anew, from the lines of results/.

`python docs/blocks.py` rewrites every block in place, and draws the pictures of reproduced.md and do-capsules-help.md.
A block stands between two comments, of which the first says what it shows:

    <!-- block: cells fm/figure4 cpu fashion-mnist-fm 'fashion-mnist-dynamic-*' -->
    ...
    <!-- end -->

`BLOCKS` has the kinds. Measured numbers stand in blocks and nowhere else, which `tests/test_blocks.py` holds.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import discriminative_blocks
import draw_help
import draw_two_cores
import fm_blocks
import help_advice
import help_blocks
import help_examined
import xnodr_blocks
from draw_compared import table as compared_table
from help_runs import Study

from torchcaps.markdown import markdown_table
from torchcaps.papers import find_tables
from torchcaps.routing.listing import routing_table
from torchcaps.tables.budget_names import Budget
from torchcaps.tables.cells import Cell, Train
from torchcaps.tables.lines import read_lines
from torchcaps.tables.metrics import Record
from torchcaps.tables.records import read_records
from torchcaps.tables.summary import Summary, summarise
from torchcaps.tables.tuned import TUNED

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
MADE = {"generated", "tutorials"}  # folders of docs/ that `make docs` makes
PAGES = (ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if not MADE & {*page.parts}))
BLOCK = re.compile(r"(<!-- block: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
PAPERS = {  # the page of each
    "discriminative": "discriminative-routing.md",
    "efficient-capsnet": "self-attention.md",
    "encapnet": "encapnet.md",
    "fm": "fm-agreement.md",
    "inverted-attention": "inverted-attention.md",
    "xnodr": "xnodr-xnidr.md",
}
UNITS = {"ms": "ms", "mb": "MB", "mib": "MiB", "bytes": "bytes", "seconds": "s", "percent": "%"}
EARLIER = "earlier form"  # of lines whose code or settings have changed since

Row = Sequence[str]


def main() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (new := renew(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(page.name)
    draw_two_cores.main()
    draw_help.main()


def renew(text: str) -> str:
    """`text` of a page with its blocks made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{make(found[2])}\n{found[3]}", text)


def make(command: str) -> str:
    """The Markdown that the words of a block's first comment name."""
    kind, *words = shlex.split(command)
    assert kind in BLOCKS, f"no block is called {kind!r}; there are {', '.join(BLOCKS)}"
    return BLOCKS[kind](*words)


def markdown(rows: Iterable[Row]) -> str:
    """A table; the first row is its head."""
    head, *others = rows
    return markdown_table(head, others)


def cells(table: str, budget: Budget, *patterns: str) -> str:
    """The runs of a table's cells in `budget`: mean, standard deviation and seeds, beside what was published.

    Where the lines of the cell as it is now are missing, those of its earlier form stand in, and are called so.
    """
    records = read_records(RESULTS / "runs.jsonl")
    rows: list[Row] = [("row", "column", "published", "measured", "seeds", "width")]
    for each in find_tables(table):
        for cell in each.cells:
            if isinstance(cell.how, Train) and any(fnmatchcase(cell.name, pattern) for pattern in patterns or ["*"]):
                rows += _of_cell(cell, budget, records)
    return markdown(rows)


def _of_cell(cell: Cell, budget: Budget, records: Sequence[Record]) -> list[Row]:
    found, form = summarise(cell, budget, records), ""
    if found is None:
        found, form = _earlier(cell, budget, records), EARLIER
    if found is None or not found.values:
        return []
    width = ", ".join(filter(None, (found.width, form)))
    shown = f"{_mean(cell, found)} {cell.metric.unit}"
    return [(cell.row, cell.column, _published(cell), shown, str(len(found.values)), width)]


def _earlier(cell: Cell, budget: Budget, records: Sequence[Record]) -> Summary | None:
    """The newest runs that were made for `cell` when its code or settings were others; one of each seed."""
    mine = [each for each in records if (each.get("cell"), each.get("budget")) == (cell.id, budget)]
    if not mine:
        return None
    same = [
        each for each in records if (each.get("config_hash"), each.get("budget")) == (mine[-1]["config_hash"], budget)
    ]
    by_seed = {each["seed"]: each for each in reversed(same)}
    lines = tuple(by_seed[seed] for seed in sorted(by_seed))
    values = tuple(value for value in map(cell.metric.read, lines) if value is not None)
    return Summary(budget, mine[-1].get("width", ""), values, lines, cell.metric.lower)


def _mean(cell: Cell, summary: Summary) -> str:
    deviation = "" if summary.std is None else f" ± {cell.metric.show(summary.std)}"
    return f"{cell.metric.show(summary.mean)}{deviation}"


def _published(cell: Cell) -> str:
    return ", ".join(map(str, cell.published)) or "-"


def benchmarks(pattern: str, *columns: str) -> str:
    """The newest line of each benchmark whose name matches a shell pattern, with some of its fields."""
    return lines("benchmarks.jsonl", f"benchmark={pattern}", "benchmark", *columns)


def lines(file: str, where: str, *columns: str) -> str:
    """Fields of the lines of a file of results: the newest of those that have the same text in the first column.

    `where` is FIELD=PATTERN, or several with commas between.
    """
    wanted = [part.partition("=")[::2] for part in where.split(",") if part]
    newest: dict[str, dict[str, Any]] = {}
    for line in read_lines(RESULTS / file):
        if all(fnmatchcase(str(line.get(field, "")), pattern) for field, pattern in wanted):
            newest[" ".join(str(line.get(name, "")) for name in columns[:1])] = line
    assert newest, f"{file} has no line where {where}"
    return markdown(
        [[_head(name) for name in columns], *([_show(each, name) for name in columns] for each in newest.values())]
    )


def tuning() -> str:
    """The short runs of which `fast` takes the best of a family: what was changed, and validation accuracy."""
    rows: list[Row] = [("trained as", "with", "epochs", "validation accuracy (%)", "taken")]
    for line in read_lines(RESULTS / "tuning.jsonl"):
        model = line["config"]["model"]["name"]
        entry = next((each for each in TUNED if fnmatchcase(model, each.family)), None)
        taken = "yes" if entry is not None and entry.changes == line["changes"] else ""
        accuracy = f"{100 * line['validation_accuracy']:.2f}"
        rows.append((f"`{line['cell']}`", line["changes"] or "-", str(line["epochs"]), accuracy, taken))
    return markdown(rows)


def weights() -> str:
    """What a checkout's trained networks scored on their test split, by the lines of their runs."""
    rows: list[Row] = [("name", "parameters", "data", "test accuracy (%)", "wrong", "MB")]
    for file in sorted((ROOT / "weights").glob("*/run.json")):
        line = json.loads(file.read_text(encoding="utf-8"))
        size = (file.parent / "model.safetensors").stat().st_size / 1e6
        wrong = f"{line['test_errors']:,} of {line['test_images']:,}"
        data, accuracy = line["config"]["data"]["name"], f"{100 * line['test_accuracy']:.2f}"
        rows.append((f"`{file.parent.name}`", f"{line['parameters']:,}", f"`{data}`", accuracy, wrong, f"{size:.1f}"))
    return markdown(rows)


def _head(column: str) -> str:
    name, _, unit = column.rpartition("_")
    return f"{name.replace('_', ' ')} ({UNITS[unit]})" if unit in UNITS and name else column.replace("_", " ")


def _show(line: dict[str, Any], column: str) -> str:
    value = line.get(column, "")
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def reproduced(docs: str, results: str, *names: str) -> str:
    """Cells of the papers' own networks, as the longest budget fills each: published, ours, and the core-hours of one.

    Args:
        docs, results: where the page finds the folders of these names.
        names: of the cells, PAPER/TABLE/CELL.
    """
    rows: list[Row] = [
        ("system", "row", "data", "measure (%)", "published", "ours", "difference", "budget", "core-hours")
    ]
    for name in names:
        run = next(each for each in draw_two_cores.runs() if each.cell.id == name)
        page = PAPERS[run.table.paper.name]
        title = (ROOT / "docs" / page).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        row = f"{run.cell.row} ([{run.table.printed}]({results}/tables/{run.table.id}.md))"
        theirs, apart = _published(run.cell), draw_two_cores.differences(run)
        ours = (run.cell.metric.name, theirs, _mean(run.cell, run.found), apart, run.found.budget, f"{run.hours:.1f}")
        rows.append((f"[{title}]({docs}/{page})", row, run.cell.column, *ours))
    return markdown(rows)


@cache
def _all_compared() -> tuple[str, ...]:
    """The lines of the whole table, of which every page of a routing shows some."""
    return tuple(compared_table(read_records(RESULTS / "runs.jsonl")).splitlines())


def compared(*heads: str) -> str:
    """Routings on one backbone: all, or some."""
    kept = [line for line in _all_compared() if not line.startswith("| `") or not heads or line.split("`")[1] in heads]
    return "\n".join(kept)


def compared_linked(docs: str, *heads: str) -> str:
    """The same, of a page that finds the folder docs there: a routing's name leads to its page."""

    def link(found: re.Match[str]) -> str:
        page = f"understand/routing-{found[1]}.md"
        return f"| [`{found[1]}`]({docs}/{page})" if (ROOT / "docs" / page).exists() else found[0]

    return re.sub(r"^\| `([^`]+)`", link, compared(*heads), flags=re.MULTILINE)


def discriminative(name: str) -> str:
    """A table of the page of discriminative routing, or a sentence where it has no line yet."""
    made = getattr(discriminative_blocks, name)()
    return made if isinstance(made, str) else markdown(made)


def fm(name: str) -> str:
    """A table of the page of FM agreement."""
    return markdown(getattr(fm_blocks, name)(EARLIER))


@cache
def _study() -> Study:
    return Study(read_records(RESULTS / "runs.jsonl"))


def capsules_help(name: str, *words: str) -> str:
    """A table or a text of the page that asks whether capsules help, or what other pages say from it."""
    modules = (help_blocks, help_examined, help_advice)
    made = next(getattr(module, name) for module in modules if hasattr(module, name))(_study(), *words)
    return made if isinstance(made, str) else markdown(made)


def two_cores(name: str) -> str:
    """A table of the page of what was run at full size."""
    return markdown(getattr(draw_two_cores, name)())


def xnodr(name: str) -> str:
    """A table of the page of XnODR, or a sentence where it has no line yet."""
    made = getattr(xnodr_blocks, name)(EARLIER)
    return made if isinstance(made, str) else markdown(made)


BLOCKS: dict[str, Callable[..., str]] = {
    "benchmarks": benchmarks,
    "cells": cells,
    "compared": compared,
    "compared-linked": compared_linked,
    "discriminative": discriminative,
    "fm": fm,
    "help": capsules_help,
    "lines": lines,
    "reproduced": reproduced,
    "routings": routing_table,
    "tuning": tuning,
    "two-cores": two_cores,
    "weights": weights,
    "xnodr": xnodr,
}


if __name__ == "__main__":
    main()
