"""Options of models as they stand on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torchcaps.config import Option


def listed(options: Mapping[str, Option]) -> dict[str, Option]:
    """Return `options`, in which whole numbers joined by commas, as `8,8,8`, are the tuples that they stand for."""
    return {
        name: tuple(int(number) for number in value.split(","))
        if isinstance(value, str) and re.fullmatch(r"-?\d+(,-?\d+)+", value)
        else value
        for name, value in options.items()
    }


def show_option(value: Any) -> str:
    """Return a value as it is typed: a list is its numbers with commas between."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
