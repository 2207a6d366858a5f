"""What is said on a terminal, in one way everywhere: names come from files of others, and must not steer it."""

from __future__ import annotations

import logging
import sys


def printable(text: str) -> str:
    """Return `text` with what is no plain character written out: controls, line ends, what turns the direction."""
    return "".join(each if each.isprintable() or each == "\t" else _written_out(ord(each)) for each in text)


def _written_out(number: int) -> str:
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


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
