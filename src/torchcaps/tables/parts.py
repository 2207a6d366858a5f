"""Parts of a plan, for several machines: which jobs a part has depends on the plan alone, whatever is done of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
ALL = "all"


def read_part(text: str) -> tuple[list[int], int]:
    """Return numbers of parts, from 1, and how many there are: of "3/16" [3] and 16, of "all/16" 1 to 16, and 16.

    Raises:
        ValueError: for another text, and for a part that there is not.
    """
    found = re.fullmatch(rf"({ALL}|\d+)/(\d+)", text)
    if found is None or int(found[2]) < 1:
        raise ValueError(f"part is {text!r}; it must be a number and of how many, such as 3/16, or {ALL}/16")
    parts = int(found[2])
    if found[1] == ALL:
        return list(range(1, parts + 1)), parts
    if not 1 <= int(found[1]) <= parts:
        raise ValueError(f"part is {text!r}, but parts are 1 to {parts}")
    return [int(found[1])], parts


def take_part(jobs: Sequence[T], number: int, parts: int) -> list[T]:
    """Return every `parts`-th of `jobs`, from the `number`-th on: all parts together are all jobs, and no two share
    one.
    """
    return list(jobs[number - 1 :: parts])
