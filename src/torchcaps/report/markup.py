"""Pieces of the page as HTML; all text is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from torchcaps.inspect.figures import to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(figure: Figure, caption: str, note: str = "") -> str:
    """Return a figure below its caption."""
    small = f"<small>{escape(note)}</small>" if note else ""
    return f"<figure><figcaption>{escape(caption)}{small}</figcaption>{to_svg(figure)}</figure>"


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """Return rows of as many cells, below a header where there is one."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    cells = ("".join(f"<td>{escape(value)}</td>" for value in row) for row in rows)
    top = f"<tr>{head}</tr>" if header else ""
    return f"<table>{top}{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
