"""By paper: complete configurations and the cells of its tables, and of its text; and the one list of recipes."""

from torchcaps.papers import (
    capsnet,
    discriminative,
    efficient_capsnet,
    encapnet,
    encapnet_six,
    fm,
    fm_decoding,
    fm_text,
    inverted_attention,
    inverted_attention_text,
    own,
    self_routing,
    variational_bayes,
    xnodr,
    xnodr_text,
)
from torchcaps.papers.registry import Finish, create_recipe, finish_recipe, list_recipes, recipe
from torchcaps.tables.cells import find_cell, find_tables, list_tables

__all__ = [
    "Finish",
    "capsnet",
    "create_recipe",
    "discriminative",
    "efficient_capsnet",
    "encapnet",
    "encapnet_six",
    "find_cell",
    "find_tables",
    "finish_recipe",
    "fm",
    "fm_decoding",
    "fm_text",
    "inverted_attention",
    "inverted_attention_text",
    "list_recipes",
    "list_tables",
    "own",
    "recipe",
    "self_routing",
    "variational_bayes",
    "xnodr",
    "xnodr_text",
]
