"""What is said on a terminal, in one way everywhere: names come from files of others, and must not steer it, nor a
spreadsheet."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any


def printable(text: str) -> str:
    """Return `text` with what is no plain character written out: controls, line ends, what turns the direction."""
    return "".join(each if each.isprintable() or each == "\t" else _written_out(ord(each)) for each in text)


def _written_out(number: int) -> str:
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def plain_cell(text: str) -> str:
    """Return `text` for a cell of a table, with ' before what a spreadsheet would take for a formula and compute; a
    number stays as it is.
    """
    if not text.startswith(("=", "+", "-", "@", "\t", "\r")):
        return text
    with suppress(ValueError):
        float(text)
        return text
    return f"'{text}"


def finite(value: Any) -> Any:
    """Return `value` as JSON can hold it: numbers that are not finite, as a diverged run has them, become None."""
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_time(seconds: float) -> str:
    """Return hours and minutes, minutes and seconds below an hour, and tenths of a second below a minute."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def say(line: str = "", end: str = "\n") -> None:
    """Print what was asked for, one line."""
    print(printable(line), end=end)


def say_lines(text: str) -> None:
    """Print what was asked for, in several lines."""
    for line in text.removesuffix("\n").split("\n"):
        say(line)


def note(line: str) -> None:
    """Write one line about what is done to standard error."""
    print(printable(line), file=sys.stderr)


def warn(text: str) -> None:
    """Write one line to the log of the package, which standard error shows where nobody has set it up otherwise."""
    logging.getLogger("torchcaps").warning("torchcaps: %s", printable(text))
