"""Complete configurations, one function each; the tables of the papers, one file each, and how they are filled."""

from torchcaps.recipes import (
    capsnet,
    discriminative,
    encapnet,
    encapnet_six,
    fm,
    fm_decoding,
    inverted_attention,
    own,
    xnodr,
)
from torchcaps.recipes.cells import find_cell, find_tables, list_tables
from torchcaps.recipes.registry import Finish, create_recipe, finish_recipe, list_recipes, recipe

__all__ = [
    "Finish",
    "capsnet",
    "create_recipe",
    "discriminative",
    "encapnet",
    "encapnet_six",
    "find_cell",
    "find_tables",
    "finish_recipe",
    "fm",
    "fm_decoding",
    "inverted_attention",
    "list_recipes",
    "list_tables",
    "own",
    "recipe",
    "xnodr",
]
