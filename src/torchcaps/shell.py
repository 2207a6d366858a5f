"""Commands as a user types them, and options of models as they stand there."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def typed(words: Iterable[str]) -> str:
    """Return `words` as one line for the shell of the system, quoted where it needs that.

    On Windows ?, which names nothing, stands for what no quotes keep from being read by cmd or PowerShell: " % ` and $.
    """
    return " ".join(map(_quoted, words)) if os.name == "nt" else shlex.join(words)


def _quoted(word: str) -> str:
    """Return a word as cmd and PowerShell take it for one: both split at more than spaces, such as &, ; and commas."""
    word = re.sub(r'["“”„%`$]', "?", word)
    if re.fullmatch(r"[\w.:\\/=+-]+", word):
        return word
    behind = word[len(word.rstrip("\\")) :]  # backslashes before the last quote would be read with it
    return f'"{word}{behind}"'


def listed(options: Mapping[str, T]) -> dict[str, T | str | tuple[int, ...]]:
    """Return `options`, in which whole numbers joined by commas are the tuples that they stand for: 8,8,8 three
    numbers, 16, one, and () none; brackets may be around them.
    """
    return {name: _read(value) if isinstance(value, str) else value for name, value in options.items()}


def _read(text: str) -> str | tuple[int, ...]:
    found = re.fullmatch(r"\(([^()]*)\)|\[([^][]*)\]|([^()[\]]*,[^()[\]]*)", text)
    if found is None:
        return text
    inside = next(each for each in found.groups() if each is not None)
    numbers = inside.strip().removesuffix(",").split(",") if inside.strip() else []
    return tuple(map(int, numbers)) if all(re.fullmatch(r"\s*-?\d+\s*", each) for each in numbers) else text


def show_option(value: Any) -> str:
    """Return an option of a model as it is typed, which `listed` reads: a list is its numbers with commas between, one
    has a comma behind it, and none are ().
    """
    if not isinstance(value, list | tuple):
        return str(value)
    return f"{value[0]}," if len(value) == 1 else ",".join(map(str, value)) or "()"
