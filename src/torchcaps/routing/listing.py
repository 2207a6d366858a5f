"""What is said of the routings wherever they are listed: the command line and the README's table read it here."""

from __future__ import annotations

from torchcaps.markdown import markdown_table
from torchcaps.routing.registry import list_routings

HEADER = ("name", "source", "time", "memory", "is")


def routing_rows() -> list[tuple[str, ...]]:
    """Return a row for each routing, in the order of `HEADER`."""
    return [(s.name, s.paper, f"O({s.time})", f"O({s.memory})", ", ".join(s.capabilities)) for s in list_routings()]


def routing_table() -> str:
    """Return the rows as a table in Markdown."""
    return markdown_table(HEADER, ((f"`{name}`", *rest) for name, *rest in routing_rows()))
