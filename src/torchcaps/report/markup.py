"""Pieces of the page as HTML; all text is escaped here."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from torchcaps.inspect.figures import to_svg
from torchcaps.terminal import finite

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


def read_part(name: str, package: str = "torchcaps.report") -> str:
    """Return a file of the folder `web` of a package, with the line ends that a browser hashes it with."""
    return (files(package) / "web" / name).read_text(encoding="utf-8")


def source_hash(text: str) -> str:
    """Return the name by which a content security policy allows a script or a style, without quotes."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def embedded_json(value: Any) -> str:
    """Return `value` as JSON that no browser takes for markup; numbers that are not finite are null."""
    text = json.dumps(finite(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
