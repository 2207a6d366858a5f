"""What a user typed, and what is wrong with it, in one line each.

tyro reports a wrong command line in a box and ends the process. Here the box is caught and said in one line, as all
other errors are. For that, parsing and running must be two steps: what a command prints itself is not caught.
"""

from __future__ import annotations

import difflib
import functools
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import tyro

from torchcaps.extras import EXTRAS, missing_extra

USER_ERROR, FAULT, INTERRUPTED = 2, 1, 130  # exit statuses
ADDRESS = ""  # of the project, for faults to be reported; empty until it has one, and it stands nowhere else
USER_ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, MemoryError)
EXPECTED = (FloatingPointError, OSError)  # nobody's mistake, and said in full by their messages
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def bind(commands: Mapping[str, Callable[..., None]], args: Sequence[str], **options: Any) -> Callable[..., None]:
    """Return the function of `commands` that `args` name, with the arguments that they give; `options` are tyro's.

    Raises:
        ValueError: for a wrong command line.
        SystemExit: when help was asked for, and has been printed.
    """
    with usage_errors():
        return tyro.extras.subcommand_cli_from_dict(
            {name: _deferred(command) for name, command in commands.items()}, args=args, **options
        )


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn what tyro reports of a wrong command line, before it exits, into a ValueError of one line."""
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            yield
    except SystemExit as stop:
        if stop.code:
            raise ValueError(read_box(printed.getvalue())) from stop
        raise


def read_box(box: str) -> str:
    """Return what a box of tyro's says: its first part, the nearest of the flags that it suggests, and how to get help.

    A box is a title and parts between rules, framed, or with rules of "-" and no frame where only ASCII can be printed.
    """
    rows = [_ESCAPES.sub("", row).strip(" │") for row in box.strip().splitlines()[1:]]
    parts = " ".join("\0" if "─" in row or set(row) == {"-"} else row for row in rows).split("\0")
    said = [part for part in (" ".join(part.split()) for part in parts) if part]
    first, *others = said or ["the command line is wrong"]  # a box may be empty
    shown = first.removesuffix(".")
    typed = re.search(r"(--\S+?),?(\s|$)", first)
    known = re.findall(r"--[a-z][\w.-]*", " ".join(each for each in others if each.startswith("Perhaps you meant")))
    if typed and (near := difflib.get_close_matches(typed[1], known, n=1, cutoff=0.0)):
        shown += f"; the nearest is {near[0]}"
    if help_at := re.search(r"For full helptext, (?:run|see):? (.*--help)", " ".join(others)):
        shown += f" ({help_at[1]} shows more)"
    return shown


def describe(error: Exception, debug: bool) -> tuple[str, int]:
    """Return one line for `error`, and the exit status."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in EXTRAS:
        return missing_extra(error), USER_ERROR
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, USER_ERRORS):
        return message, USER_ERROR
    expected = debug or isinstance(error, EXPECTED)
    told = f"; please report it at {ADDRESS}" if ADDRESS else ""
    return message if expected else f"{message} ({type(error).__name__}; --debug shows where{told})", FAULT


def _deferred(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """Return a function with the signature and the help of `command` that returns the call in place of making it."""

    @functools.wraps(command)
    def wait(*args: Any, **kwargs: Any) -> Callable[..., None]:
        return functools.partial(command, *args, **kwargs)

    return wait
