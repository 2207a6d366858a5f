"""Errors for names that are not there, each naming the nearest one that is, and for values of a wrong type."""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

LARGEST = 1e18  # that a number in a record may be, which has no use for more
YOURS = "--import FILE brings your own"  # what hints say where a file of the user's may add to the list


def unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> ValueError:
    """Return the error to raise when no `kind` is called `name`; `hint` says where all of them are listed."""
    known = list(known)
    last = [each for each in known if each.rpartition(".")[2] == name]  # of a name with dots, what it is called short
    near = last or difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    nearest = f"; the nearest is {near[0]!r}" if near else ""
    return ValueError(f"no {kind} is named {name!r}{nearest}" + (f" ({hint})" if hint else ""))


def check_options(owner: str, function: Callable[..., object], options: Mapping[str, object]) -> None:
    """Raise `unknown` for the first of `options` that `function` does not have, ValueError for one of another type."""
    known = list(inspect.signature(function).parameters)
    kinds = typing.get_type_hints(function.__init__ if isinstance(function, type) else function)
    for name, value in options.items():
        if name not in known:
            raise unknown(f"option of {owner}", name, known)
        kind = kinds.get(name, Any)
        if not fits(value, kind):
            how = ", typed 8,8, or 8, where there is one" if describe_type(kind).startswith("tuple") else ""
            raise ValueError(f"option {name} of {owner} is {value!r}; it must be {describe_type(kind)}{how}")


def fits(value: object, kind: Any) -> bool:
    """Return whether `value` is of the type `kind`; an int is a float, a bool is no number. Of what is not known:
    True.
    """
    if kind is Any:
        return True
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in arguments)
    if origin is typing.Literal:
        return any(value == each and type(value) is type(each) for each in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(fits(each, arguments[0]) for each in value)
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    if origin is dict:
        return isinstance(value, dict) and all(fits(each, arguments[1]) for each in value.values())
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind) if isinstance(kind, type) else True


def check_fields(plain: Mapping[str, object], kinds: Mapping[str, Any], needed: Iterable[str] = ()) -> None:
    """Raise ValueError for the first of the fields `kinds` that `plain`, read from JSON, has with another type.

    Numbers must be finite, of at most `LARGEST`. So it does for the first of `needed` that is not there; other fields
    are passed over.
    """
    for name in needed:
        if name not in plain:
            raise ValueError(f"it has no {name}")
    for name, kind in kinds.items():
        if name not in plain:
            continue
        value = plain[name]
        number = isinstance(value, int | float)
        if not fits(value, kind) or (number and not abs(value) <= LARGEST):
            raise ValueError(f"{name} is {str(value)[:80]!r}; it must be {describe_type(kind)}")


def describe_type(kind: Any) -> str:
    """Return `kind` as a user may read it, e.g. "int", "float or None", "'none', 'image' or 'dataset'"."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) not in (typing.Union, types.UnionType, typing.Literal):
        return getattr(kind, "__name__", str(kind)) if not arguments else str(kind)
    shown = [repr(each) if isinstance(each, str) else getattr(each, "__name__", str(each)) for each in arguments]
    shown = ["None" if each == "NoneType" else each for each in shown]
    return " or ".join([", ".join(shown[:-1]), shown[-1]] if shown[1:] else shown)


def check_choice(what: str, value: object, choices: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`; the message names what it may be."""
    known = list(choices)
    if value not in known:
        raise ValueError(f"{what} is {value!r}; it must be {', '.join(map(repr, known[:-1]))} or {known[-1]!r}")
