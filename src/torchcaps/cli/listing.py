"""`torchcaps list`: the names of what there is, and columns for all commands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from tyro.conf import Positional

from torchcaps.terminal import note, say


def list_names(
    kind: Positional[Literal["models", "recipes", "routings", "data", "tables"]], pattern: Positional[str] = "*"
) -> None:
    """List what there is, one name a line; a pattern that nothing matches is said on standard error.

    For example: `torchcaps list recipes "fm/*"`.

    Args:
        kind: of what
        pattern: of names, as a shell has it, in quotes: "*-cifar10"
    """

    rows = _rows(kind, pattern)
    if not rows:
        near = len(_rows(kind, f"*{pattern}*"))
        note(f"torchcaps: no {kind} match {pattern!r}" + (f"; {near} match '*{pattern}*'" if near else ""))
    elif kind == "routings":
        from torchcaps.routing.listing import HEADER

        print_columns([HEADER, *rows])
    else:
        print_lines([(row[0], row[1]) for row in rows])


def _rows(kind: str, pattern: str) -> list[tuple[str, ...]]:
    """Return names that match, and what is said of each."""

    def matches(name: str) -> bool:
        return fnmatchcase(name, pattern)

    match kind:
        case "models":
            from torchcaps.models import list_models

            return [(name, "") for name in list_models(pattern)]
        case "recipes":
            from torchcaps.papers import list_recipes

            return list(list_recipes(pattern).items())
        case "routings":
            from torchcaps.routing.listing import routing_rows

            return [row for row in routing_rows() if matches(row[0])]
        case "tables":
            from torchcaps.papers import list_tables

            return [(each.id, f"{each.printed}: {each.title}") for each in list_tables() if matches(each.id)]
        case _:
            from torchcaps.data.catalogue import list_entries

            return [(each.name, f"{each.about}: {each.facts()}") for each in list_entries() if matches(each.name)]


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
