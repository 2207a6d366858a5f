"""One file a paper: complete configurations and the cells of its tables; and the one list of recipes."""

from torchcaps.papers import (
    capsnet,
    discriminative,
    encapnet,
    encapnet_six,
    fm,
    fm_decoding,
    inverted_attention,
    xnodr,
)
from torchcaps.papers.registry import create_recipe, list_recipes, recipe
from torchcaps.tables.cells import find_cell, find_tables, list_tables

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
