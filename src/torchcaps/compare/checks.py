"""What is refused before a comparison begins, which may take hours."""

from __future__ import annotations

from collections.abc import Sequence

from torchcaps.compare.comparison import Comparison
from torchcaps.config import OPTION
from torchcaps.fields import read_field
from torchcaps.names import OF_TWIN
from torchcaps.tables.budget_names import Budget
from torchcaps.tables.budgets import apply_budget
from torchcaps.tables.cells import Cell


def check_cells(comparison: Comparison, cells: Sequence[Cell], budget: Budget, trained: bool) -> None:
    """Raise ValueError for a sweep over what there is not, or over what the budget sets; and, of cells that are to be
    `trained`, for an option that a model does not take.
    """
    for cell in cells:
        assert cell.build is not None
        cell.build()
    if comparison.fractions:
        check_sweep(cells, budget, "data.fraction")
    if comparison.sweep:
        check_sweep(cells, budget, comparison.sweep[0])
        if comparison.sweep[0].startswith(OPTION) and trained:
            check_models(cells)


def check_sweep(cells: Sequence[Cell], budget: Budget, field: str) -> None:
    """Raise ValueError where a budget sets the `field` that a sweep is over, so that rows were named wrongly."""
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
        if config.model in done or config.model.name.endswith(OF_TWIN):
            continue
        try:
            build_meta(config)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{cell.name}: {error}") from error
        done.append(config.model)
