"""Write the blocks of README and docs that hold measured numbers anew, from the lines of results/.

`python docs/blocks.py` rewrites every block in place. A block stands between two comments, of which the first says
what it shows:

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
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import discriminative_blocks
import fm_blocks
import xnodr_blocks
from draw_compared import table as compared_table

from torchcaps.papers import find_tables, list_tables
from torchcaps.routing.listing import routing_table
from torchcaps.tables.budgets import REPRODUCTIONS, apply_budget
from torchcaps.tables.cells import Cell, Train
from torchcaps.tables.metrics import TRAIN_ACCURACY, TRAIN_LOSS
from torchcaps.tables.records import config_hash, read_records

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- block: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
UNITS = {"ms": "ms", "mb": "MB", "mib": "MiB", "bytes": "bytes", "seconds": "s", "percent": "%"}
EARLIER = "earlier form"  # of lines whose code or settings have changed since

Row = Sequence[str]


def main() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if (new := renew(text)) != text:
            page.write_text(new, encoding="utf-8")
            print(page.name)


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
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *others))


def cells(table: str, budget: str, *patterns: str) -> str:
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


def _of_cell(cell: Cell, budget: str, records: Sequence[dict[str, Any]]) -> list[Row]:
    assert isinstance(cell.how, Train)
    config = apply_budget(cell.how.build(), budget, cell)  # pyright: ignore[reportArgumentType]
    wanted = config_hash(config)
    shared = {each["config_hash"] for each in records if each.get("cell") == cell.id and each.get("budget") == budget}
    of_budget = [each for each in records if each.get("budget") == budget]
    found = [each for each in of_budget if each["config_hash"] == wanted]
    earlier = not found
    if earlier:
        mine = [each for each in of_budget if each["config_hash"] in shared]
        found = [each for each in mine if each["config_hash"] == mine[-1]["config_hash"]]
    values = [value for value in map(cell.metric.read, found) if value is not None]
    if not values:
        return []
    spread = f" ± {stdev(values):.{cell.metric.digits}f}" if len(values) > 1 else ""
    shown = f"{mean(values):.{cell.metric.digits}f}{spread} {cell.metric.unit}"
    published = ", ".join(map(str, cell.published)) or "-"
    width = ", ".join(filter(None, (found[-1].get("width", ""), EARLIER if earlier else "")))
    return [(cell.row, cell.column, published, shown, str(len(values)), width)]


def benchmarks(pattern: str, *columns: str) -> str:
    """The newest line of each benchmark whose name matches a shell pattern, with some of its fields."""
    return lines("benchmarks.jsonl", f"benchmark={pattern}", "benchmark", *columns)


def lines(file: str, where: str, *columns: str) -> str:
    """Fields of the lines of a file of results: the newest of those that have the same text in the first column.

    `where` is FIELD=PATTERN, or several with commas between.
    """
    wanted = [part.partition("=")[::2] for part in where.split(",") if part]
    newest: dict[str, dict[str, Any]] = {}
    for text in (RESULTS / file).read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        if all(fnmatchcase(str(line.get(field, "")), pattern) for field, pattern in wanted):
            newest[" ".join(str(line.get(name, "")) for name in columns[:1])] = line
    assert newest, f"{file} has no line where {where}"
    return markdown(
        [[_head(name) for name in columns], *([_show(each, name) for name in columns] for each in newest.values())]
    )


def _head(column: str) -> str:
    name, _, unit = column.rpartition("_")
    return f"{name.replace('_', ' ')} ({UNITS[unit]})" if unit in UNITS and name else column.replace("_", " ")


def _show(line: dict[str, Any], column: str) -> str:
    value = line.get(column, "")
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def reproduced(results: str, *patterns: str) -> str:
    """All cells of papers that runs at full size fill: published, ours, and the core-hours of a run.

    `results` is where the page finds the folder of that name.
    """
    records = read_records(RESULTS / "runs.jsonl")
    rows: list[Row] = [("table", "row", "column", "published", "ours", "seeds", "budget", "core-hours a run")]
    for table in list_tables():
        for cell in table.cells:
            if not isinstance(cell.how, Train) or cell.metric in (TRAIN_ACCURACY, TRAIN_LOSS):
                continue
            if not any(fnmatchcase(cell.id, each) for each in patterns or ["*"]):
                continue
            for budget in REPRODUCTIONS:
                wanted = config_hash(apply_budget(cell.how.build(), budget, cell))
                found = [each for each in records if (each.get("config_hash"), each.get("budget")) == (wanted, budget)]
                values = [value for value in map(cell.metric.read, found) if value is not None]
                if not values:
                    continue
                spread = f" ± {stdev(values):.{cell.metric.digits}f}" if len(values) > 1 else ""
                hours = mean(each["seconds"] * each["environment"].get("threads", 1) / 3600 for each in found)
                ours = f"{mean(values):.{cell.metric.digits}f}{spread}"
                published = ", ".join(map(str, cell.published)) or "-"
                link = f"[{table.paper.citation}, {table.printed}]({results}/tables/{table.id}.md)"
                rows.append((link, cell.row, cell.column, published, ours, str(len(values)), budget, f"{hours:.1f}"))
    return markdown(rows)


def compared(*heads: str) -> str:
    """Routings on one backbone: all, or some."""
    made = compared_table(read_records(RESULTS / "runs.jsonl")).splitlines()
    kept = [line for line in made if not line.startswith("| `") or not heads or line.split("`")[1] in heads]
    return "\n".join(kept)


def discriminative(name: str) -> str:
    """A table of the page of discriminative routing."""
    return markdown(getattr(discriminative_blocks, name)())


def fm(name: str) -> str:
    """A table of the page of FM agreement."""
    return markdown(getattr(fm_blocks, name)(EARLIER))


def xnodr(name: str) -> str:
    """A table of the page of XnODR, or a sentence where it has no line yet."""
    made = getattr(xnodr_blocks, name)(EARLIER)
    return made if isinstance(made, str) else markdown(made)


BLOCKS: dict[str, Callable[..., str]] = {
    "benchmarks": benchmarks,
    "cells": cells,
    "compared": compared,
    "discriminative": discriminative,
    "fm": fm,
    "lines": lines,
    "reproduced": reproduced,
    "routings": routing_table,
    "xnodr": xnodr,
}


if __name__ == "__main__":
    main()
