"""Fields of a configuration by their names with dots, such as "optimiser.lr": read, written and listed."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from torchcaps.config import OPTION, Config, from_plain, to_plain
from torchcaps.names import unknown

C = TypeVar("C")


def replace_field(config: Config, name: str, text: str) -> Config:
    """Return `config` with what `text` says, as it would be typed, in the field `name`, such as "optimiser.lr".

    Raises:
        ValueError: for a field that it does not have, and a value that it does not take.
    """
    plain = part = to_plain(config)
    *path, last = name.replace("-", "_").split(".")
    for each in path:
        part = part.get(each)
        if not isinstance(part, dict):
            raise unknown("field of a config", name, [name for name, _ in list_fields(plain)])
    option = name.startswith(OPTION) and len(path) == 2  # which a model may have, whether or not the config says it
    if (last not in part and not option) or isinstance(part.get(last), dict):
        raise unknown("field of a config", name, [name for name, _ in list_fields(plain)])
    before = part.get(last)
    for read in (
        json.loads,
        lambda text: json.loads(f"[{text.removesuffix(',')}]"),
        str,
    ):  # 0.1, then 16,16, then a name
        with suppress(ValueError):
            part[last] = {"True": True, "False": False, "None": None}.get(text, read(text))
            return from_plain(Config, plain)
    raise ValueError(f"{name} cannot be {text!r}; here it is {before!r}")


def read_field(config: Any, name: str) -> Any:
    """Return the value of a field of a config or of a part of it, such as "optimiser.lr"; None of an option of the
    model that is not given.
    """
    for part in name.replace("-", "_").split("."):
        config = config.get(part) if isinstance(config, Mapping) else getattr(config, part)
    return config


def with_field(config: C, name: str, value: object) -> C:
    """Return a config, or a part of one, with `value` in its field `name`, such as "optimiser.lr"."""
    first, _, rest = name.partition(".")
    changed = {first: with_field(getattr(config, first), rest, value) if rest else value}
    return replace(typing.cast(Any, config), **changed)


def list_fields(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the names of all fields of a plain config, with dots, and their values."""
    for name, value in plain.items():
        if isinstance(value, dict):
            yield from list_fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
