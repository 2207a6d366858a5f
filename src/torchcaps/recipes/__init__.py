"""Complete configurations, one function each, one file per paper."""

from torchcaps.recipes import capsnet
from torchcaps.recipes.registry import create_recipe, list_recipes, recipe

__all__ = ["capsnet", "create_recipe", "list_recipes", "recipe"]
