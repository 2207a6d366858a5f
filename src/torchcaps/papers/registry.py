"""The one list of recipes: functions under names of their own, and every cell of a paper's table that is trained.

Nothing here or in a recipe imports torch, so that listings answer at once.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Set
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple, overload

from torchcaps.config import Config
from torchcaps.names import YOURS, check_choice, check_name, enter, unknown
from torchcaps.plugins import load_plugins
from torchcaps.tables.budget_names import BUDGETS, FULL, Budget
from torchcaps.tables.budgets import apply_budget
from torchcaps.tables.cells import Cell, Train, list_tables

Recipe = Callable[[], Config]


class Finish(NamedTuple):
    """What of a recipe follows from its model and data, once flags have said what these are."""

    fields: tuple[str, ...]  # names with dots, such as "optimiser.lr", of what `choose` may set
    choose: Callable[[Config, Set[str]], tuple[Config, str]]  # of the fields that flags gave; and what it says of it


_RECIPES: dict[str, Recipe] = {}
_FINISHES: dict[str, Finish] = {}
_SELECTED: set[str] = set()  # recipes whose epoch is chosen on validation images under every budget


@overload
def recipe(function: Recipe) -> Recipe: ...
@overload
def recipe(*, finish: Finish | None = ..., selected: bool = ...) -> Callable[[Recipe], Recipe]: ...
def recipe(function: Recipe | None = None, *, finish: Finish | None = None, selected: bool = False) -> Any:
    """Register a function that returns a `Config`, under its own name with '-' for '_'.

    The first line of its docstring is what listings say of it. The name is written into the config.

    Args:
        function: what is registered; without it a decorator is returned. Defined again, it takes the place of what it
            was.
        finish: what follows from model and data, see `finish_recipe`.
        selected: whether the epoch is chosen on the recipe's validation split under every budget, see `Train`.

    Raises:
        ValueError: for a function without a docstring, and for a name that no recipe can have, or that another one has.
    """
    if function is None:
        return partial(_register, finish=finish, selected=selected)
    return _register(function, finish, selected)


def _register(function: Recipe, finish: Finish | None, selected: bool) -> Recipe:
    name = function.__name__.replace("_", "-")
    check_name("recipe", name)
    if not function.__doc__ and sys.flags.optimize < 2:  # Python -OO leaves all docstrings out
        raise ValueError(f"recipe {name!r} has no docstring; its first line is what listings say of it")
    enter("recipe", _RECIPES, name, function)
    if finish is not None:
        _FINISHES[name] = finish
    else:
        _FINISHES.pop(name, None)
    (_SELECTED.add if selected else _SELECTED.discard)(name)
    return function


def finished_fields(name: str) -> tuple[str, ...]:
    """Return names of the fields of a recipe that follow from its model and data; empty for one that is complete as
    it is.
    """
    return _FINISHES[name].fields if name in _FINISHES else ()


def finish_recipe(name: str, config: Config, given: Set[str]) -> tuple[Config, str]:
    """Return `config`, made of the recipe `name`, with what follows from its model and data; and a line that says it.

    Args:
        name: of the recipe; one that is complete as it is changes nothing, and nothing is said.
        config: with what flags have changed.
        given: names of the fields that flags gave, which stay.

    Raises:
        FileNotFoundError, ValueError: for data that are not there.
    """
    return _FINISHES[name].choose(config, given) if name in _FINISHES else (config, "")


def list_recipes(pattern: str = "*") -> dict[str, str]:
    """Return names that match a shell pattern, in the order of their files, with one line about each.

    Behind the recipes with names of their own stand the cells of papers' tables that are trained, PAPER/TABLE/CELL.
    """
    load_plugins()
    own = {name: (function.__doc__ or "").strip().partition("\n")[0] for name, function in _RECIPES.items()}
    every = own | {name: _describe(cell) for name, cell in _cells().items()}
    return {name: about for name, about in every.items() if fnmatchcase(name, pattern)}


def create_recipe(name: str, budget: Budget | None = None) -> Config:
    """Return the config of the recipe `name`.

    Args:
        name: one of `list_recipes()`.
        budget: what is made of it, see `torchcaps.tables.budgets`; None: a recipe as it is written, and of a cell what
            its paper trained, "full".

    Raises:
        ValueError: for a name that is not registered (the nearest one is named), and for an unknown budget.
    """
    if budget is not None:
        check_choice("budget", budget, BUDGETS)
    load_plugins()
    if name in _RECIPES:
        config = _RECIPES[name]()
        if budget is None:
            return dataclasses.replace(config, recipe=name)
        return apply_budget(config, budget, Cell(name, name, "", Train(_RECIPES[name], selected=name in _SELECTED)))
    cells = _cells()
    if name not in cells and (inside := [each for each in cells if each.startswith(f"{name.rstrip('/')}/")]):
        raise ValueError(
            f"{name!r} is no recipe, but {len(inside)} begin so, such as {inside[0]!r} (`torchcaps list recipes "
            f"'{name.rstrip('/')}/*'`); `torchcaps reproduce` trains all cells of a table"
        )
    if name not in cells:
        raise unknown("recipe", name, [*_RECIPES, *cells], f"`torchcaps list recipes` shows all; {YOURS}")
    cell = cells[name]
    assert isinstance(cell.how, Train), cell.id
    return apply_budget(cell.how.build(), budget or FULL, cell)


def _cells() -> dict[str, Cell]:
    """Return the cells that are trained, by PAPER/TABLE/CELL."""
    return {cell.id: cell for table in list_tables() for cell in table.cells if isinstance(cell.how, Train)}


def _describe(cell: Cell) -> str:
    published = f"; published {', '.join(map(str, cell.published))}" if cell.published else ""
    return f"{cell.row}, {cell.column}{published}."
