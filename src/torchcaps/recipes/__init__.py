"""Complete configurations, one function each; the tables of the papers, one file each, and how they are filled."""

from torchcaps.recipes import (
    capsnet,
    discriminative,
    encapnet,
    encapnet_six,
    fm,
    fm_decoding,
    inverted_attention,
    xnodr,
)
from torchcaps.recipes.cells import find_cell, find_tables, list_tables
from torchcaps.recipes.registry import create_recipe, list_recipes, recipe

__all__ = [
    "capsnet",
    "create_recipe",
    "discriminative",
    "encapnet",
    "encapnet_six",
    "find_cell",
    "find_tables",
    "fm",
    "fm_decoding",
    "inverted_attention",
    "list_recipes",
    "list_tables",
    "recipe",
    "xnodr",
]
