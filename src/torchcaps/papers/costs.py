"""Cells of what papers print of costs, by their own way of counting; see `torchcaps.cost`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torchcaps.cost import published_costs
from torchcaps.tables.cells import Cell, Formula, How, Impossible, Published, Quoted
from torchcaps.tables.metrics import formula_metric

UNITS = {"B": 1e9, "M": 1e6, "K": 1e3}
COUNTED = {"parameters": "parameters", "flops": "FLOPs", "bops": "binary operations", "ratio": "ratio"}


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def costs(paper: str, table: str) -> Iterator[Cell]:
    """Yield the FLOPs, parameters, binary operations and ratios of a table, or of the "text", by the paper's
    convention.
    """
    for cost in published_costs(paper, table):
        digits = cost.printed.rstrip("%BMKx")
        unit, decimals = cost.printed.removeprefix(digits), len(digits.partition(".")[2])
        how: How = Quoted() if cost.quoted else Impossible(cost.reason)
        if not cost.quoted and cost.reproduced and cost.computed is not None:
            how = Formula(cost.computed / UNITS.get(unit, 1.0))
        metric, published = formula_metric(COUNTED[cost.quantity], unit, decimals), Published(digits.replace(",", ""))
        yield Cell(slug(f"{cost.row} {cost.column}"), cost.row, cost.column, how, (published,), metric)
