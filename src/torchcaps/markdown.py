"""Tables in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable

_BAR = re.compile(r"(?<!\\)\|")


def markdown_table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Return a table, one line a row: a line break in a cell is a space, and a bar is escaped where it is not yet."""
    first, *others = ([_BAR.sub(r"\\|", str(cell)).replace("\n", " ") for cell in row] for row in (head, *rows))
    return "\n".join(f"| {' | '.join(row)} |" for row in (first, ["---"] * len(first), *others))
