"""The one list of recipes. Nothing here or in a recipe imports torch, so that listings answer at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fnmatch import fnmatchcase

from torchcaps.config import Config
from torchcaps.names import unknown

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
    """Names that match a shell pattern, in the order of their files, with one line about each."""
    return {
        name: (function.__doc__ or "").strip().splitlines()[0]
        for name, function in _RECIPES.items()
        if fnmatchcase(name, pattern)
    }


def create_recipe(name: str) -> Config:
    """The config of the recipe `name`.

    Raises:
        ValueError: for a name that is not registered; the nearest one is named.
    """
    if name not in _RECIPES:
        raise unknown("recipe", name, _RECIPES, "`torchcaps list recipes` shows all")
    return dataclasses.replace(_RECIPES[name](), recipe=name)
