"""The one list of recipes: functions under names of their own, and every cell of a paper's table that is trained.

Nothing here or in a recipe imports torch, so that listings answer at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fnmatch import fnmatchcase

from torchcaps.config import Config
from torchcaps.names import check_choice, unknown
from torchcaps.tables.budgets import BUDGETS, Budget, apply_budget
from torchcaps.tables.cells import Cell, Train, list_tables

Recipe = Callable[[], Config]
_RECIPES: dict[str, Recipe] = {}


def recipe(function: Recipe) -> Recipe:
    """Register a function that returns a `Config`, under its own name with '-' for '_'.

    The first line of its docstring is what listings say of it. The name is written into the config.
    """
    name = function.__name__.replace("_", "-")
    assert name not in _RECIPES, f"recipe {name!r} is registered twice"
    assert function.__doc__, f"recipe {name!r} has no docstring"
    _RECIPES[name] = function
    return function


def list_recipes(pattern: str = "*") -> dict[str, str]:
    """Names that match a shell pattern, in the order of their files, with one line about each.

    Behind the recipes with names of their own stand the cells of papers' tables that are trained, PAPER/TABLE/CELL.
    """
    own = {name: (function.__doc__ or "").strip().splitlines()[0] for name, function in _RECIPES.items()}
    every = own | {name: _describe(cell) for name, cell in _cells().items()}
    return {name: about for name, about in every.items() if fnmatchcase(name, pattern)}


def create_recipe(name: str, budget: Budget | None = None) -> Config:
    """The config of the recipe `name`.

    Args:
        name: one of `list_recipes()`.
        budget: what is made of it, see `torchcaps.tables.budgets`; None: a recipe as it is written, and of a cell what
            its paper trained, "full".

    Raises:
        ValueError: for a name that is not registered (the nearest one is named), and for an unknown budget.
    """
    if budget is not None:
        check_choice("budget", budget, BUDGETS)
    if name in _RECIPES:
        config = _RECIPES[name]()
        if budget is None:
            return dataclasses.replace(config, recipe=name)
        return apply_budget(config, budget, Cell(name, name, "", Train(_RECIPES[name])))
    cells = _cells()
    if name not in cells:
        raise unknown("recipe", name, [*_RECIPES, *cells], "`torchcaps list recipes` shows all")
    cell = cells[name]
    assert isinstance(cell.how, Train), cell.id
    return apply_budget(cell.how.build(), budget or "full", cell)


def _cells() -> dict[str, Cell]:
    """The cells that are trained, by PAPER/TABLE/CELL."""
    return {cell.id: cell for table in list_tables() for cell in table.cells if isinstance(cell.how, Train)}


def _describe(cell: Cell) -> str:
    published = f"; published {', '.join(map(str, cell.published))}" if cell.published else ""
    return f"{cell.row}, {cell.column}{published}."
