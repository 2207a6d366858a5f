"""Errors for names that are not there: each names the nearest one that is."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping


def unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> ValueError:
    """The error to raise when no `kind` is called `name`; `hint` says where all of them are listed."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    nearest = f"; the nearest is {near[0]!r}" if near else ""
    return ValueError(f"no {kind} is named {name!r}{nearest}" + (f" ({hint})" if hint else ""))


def check_options(owner: str, function: Callable[..., object], options: Mapping[str, object]) -> None:
    """Raise `unknown` for the first of `options` that is no keyword of `function`."""
    known = list(inspect.signature(function).parameters)
    for name in options:
        if name not in known:
            raise unknown(f"option of {owner}", name, known)


def check_choice(what: str, value: object, choices: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`; the message names what it may be."""
    known = list(choices)
    if value not in known:
        raise ValueError(f"{what} is {value!r}; it must be {', '.join(map(repr, known[:-1]))} or {known[-1]!r}")
