"""`torchcaps list`: the names of what there is, and columns for all commands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from tyro.conf import Positional

from torchcaps.terminal import say


def list_names(
    kind: Positional[Literal["models", "recipes", "routings", "data", "tables"]], pattern: Positional[str] = "*"
) -> None:
    """List what there is, one name a line.

    Args:
        kind: of what
        pattern: of names, as a shell has it, in quotes: "*-cifar10"
    """

    def matches(name: str) -> bool:
        return fnmatchcase(name, pattern)

    match kind:
        case "models":
            from torchcaps.models import list_models

            print_lines((name, "") for name in list_models(pattern))
        case "recipes":
            from torchcaps.papers import list_recipes

            print_lines((name, about) for name, about in list_recipes().items() if matches(name))
        case "routings":
            from torchcaps.routing.listing import HEADER, routing_rows

            print_columns([HEADER, *(row for row in routing_rows() if matches(row[0]))])
        case "tables":
            from torchcaps.papers import list_tables

            print_lines((table.id, f"{table.printed}: {table.title}") for table in list_tables() if matches(table.id))
        case "data":
            from torchcaps.data.catalogue import CATALOGUE

            entries = CATALOGUE.items()
            print_lines((name, f"{entry.about}: {entry.facts()}") for name, entry in entries if matches(name))


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of equally many cells, aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def print_lines(rows: Iterable[tuple[str, str]]) -> None:
    """Print names, and what is said of each, in two columns."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    for name, about in rows:
        say(f"{name:<{width}}  {about}".rstrip())
