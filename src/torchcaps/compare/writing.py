"""The files of a comparison below results/compare: what they are called, whose rows they have, and their pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from torchcaps.compare.comparison import Comparison
from torchcaps.compare.heads import all_heads
from torchcaps.compare.page import collect, markdown
from torchcaps.files import replace_text
from torchcaps.tables.budget_names import EVIDENCE, Budget
from torchcaps.tables.budgets import apply_budget
from torchcaps.tables.metrics import Record
from torchcaps.tables.records import RUNS, find_all_runs, read_records
from torchcaps.terminal import note, say_lines


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
    records = read_records(results / RUNS)
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
    every, found = list(dict.fromkeys([*all_heads(), *heads])), set(heads)
    for cell in comparison.cells(every):
        assert cell.build is not None
        head = cell.name.partition("@")[0]
        if head not in found and find_all_runs(records, apply_budget(cell.build(), budget, cell), budget):
            found.add(head)
    return [head for head in every if head in found]


def name_page(comparison: Comparison, budget: Budget, changes: Sequence[str]) -> str:
    """Return the path of a page below results/compare, without its ending."""
    others = [*([] if budget == EVIDENCE else [budget]), *(re.sub(r"[^\w.=+]+", "_", each)[:60] for each in changes)]
    return "-".join([comparison.id + suffix(comparison), *others])


def suffix(comparison: Comparison) -> str:
    """Return what stands behind the name of the files of a comparison: of shares, depths or the field of a sweep, as
    each has rows of its own.
    """
    if comparison.sweep:
        return f"-{comparison.sweep[0].replace('-', '_')}"
    return "-fractions" if comparison.fractions else "-depth" if comparison.depths else ""
