"""`torchcaps list`: the names of what there is, and columns for all commands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from tyro.conf import Positional


def list_names(kind: Positional[Literal["models", "recipes", "routings", "data", "tables"]]) -> None:
    """List what there is, one name a line.

    Args:
        kind: of what
    """
    match kind:
        case "models":
            from torchcaps.models import list_models

            print_lines((name, "") for name in list_models())
        case "recipes":
            from torchcaps.recipes import list_recipes

            print_lines(list_recipes().items())
        case "routings":
            from torchcaps.routing.listing import HEADER, routing_rows

            print_columns([HEADER, *routing_rows()])
        case "tables":
            from torchcaps.recipes import list_tables

            print_lines((table.id, f"{table.printed}: {table.title}") for table in list_tables())
        case "data":
            from torchcaps.data.catalogue import CATALOGUE

            print_lines((name, f"{entry.about}: {entry.facts()}") for name, entry in CATALOGUE.items())


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Rows of equally many cells, aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def print_lines(rows: Iterable[tuple[str, str]]) -> None:
    """Names, and what is said of each, in two columns."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    for name, about in rows:
        print(f"{name:<{width}}  {about}".rstrip())
