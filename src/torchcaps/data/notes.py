"""What is said of data that are read otherwise than they were given: nothing is left out or changed without a word."""

from __future__ import annotations

from collections.abc import Sequence

from torch import distributed

from torchcaps.terminal import warn

NAMED = 5  # of many names, how many are said
_said: set[str] = set()


def say(text: str) -> None:
    """Write one line to the log, the first time that it is to be said, in the first of several processes alone."""
    if text in _said or (distributed.is_initialized() and distributed.get_rank()):
        return
    _said.add(text)
    warn(text)


def some(names: Sequence[str]) -> str:
    """Return the names in one line, of many the first few and how many more there are."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
