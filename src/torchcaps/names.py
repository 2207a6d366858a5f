"""Errors for names that are not there, naming the nearest that is, and for values of a wrong type; reserved words."""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
import operator
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

V = TypeVar("V")

LARGEST = 1e18  # that a number in a record may be, which has no use for more
YOURS = "--import FILE brings your own"  # what hints say where a file of the user's may add to the list

# Heads that are no routing, in names of models: a plain one, the twin of most heads, and what names the twin of one.
LINEAR, TWIN, OF_TWIN = "linear", "twin", "-twin"
RESERVED = (LINEAR, TWIN, OF_TWIN)  # which no model and no routing may be named
ROUTING = "routing_"  # before the names of a routing's options, among those of a model
FEW = 12  # names that an error may list


def unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> ValueError:
    """Return the error to raise when no `kind` is called `name`; `hint` says where all of them are listed.

    It names the nearest one, or all where none is near and they are few.
    """
    known = list(known)
    short = [each for each in known if name in (each.rpartition(".")[2], ROUTING + each) or each == ROUTING + name]
    near = (
        short or [each for each in known if each.startswith(f"{name}:")] or difflib.get_close_matches(name, known, n=1)
    )
    if near:
        others = f"; the nearest is {near[0]!r}"
    else:
        others = f"; there is {', '.join(map(repr, known))}" if 0 < len(known) <= FEW else ""
    return ValueError(f"no {kind} is named {name!r}{others}" + (f" ({hint})" if hint else ""))


def check_options(
    owner: str,
    function: Callable[..., object],
    options: Mapping[str, object],
    others: Iterable[str] = (),
    given: Iterable[str] = ("sizes",),
) -> None:
    """Raise `unknown` for the first of `options` that `function` does not have, ValueError for one of another type.

    Args:
        owner: whose options they are.
        function: a class or a function that takes them.
        options: by name.
        others: names that may stand in their place, and that an error may name.
        given: parameters of `function` that are no options.
    """
    known = [name for name in inspect.signature(function).parameters if name not in {*given}]
    kinds = typing.get_type_hints(function.__init__ if isinstance(function, type) else function)
    for name, value in options.items():
        if name not in known:
            raise unknown(f"option of {owner}", name, [*known, *others])
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
    shown = _describe_types(kind)
    return " or ".join([", ".join(shown[:-1]), shown[-1]] if shown[1:] else shown)


def whole(name: str, value: object, least: int = 1) -> int:
    """Return `value`, of anything that is a whole number such as numpy's, as an int of at least `least`.

    Raises:
        ValueError: for what is none, a bool too, or less; `name` says what it is of.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        number = None
    if number is None or number < least:
        raise ValueError(f"{name} is {value!r}; it must be a whole number, at least {least}")
    return number


def check_above(name: str, value: object, least: float = 0, equal: bool = False) -> None:
    """Raise ValueError unless `value` is a number above `least`, or with `equal` at least that; NaN is none."""
    number = float(value) if isinstance(value, numbers.Real) else math.nan
    if number >= least if equal else number > least:
        return
    raise ValueError(f"{name} is {value!r}; it must be a number {'of at least' if equal else 'above'} {least:g}")


def _describe_types(kind: Any) -> list[str]:
    """Return the types, and the values of a literal, that `kind` stands for, one by one."""
    arguments, origin = typing.get_args(kind), typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return [said for each in arguments for said in _describe_types(each)]
    if origin is typing.Literal:
        return list(map(repr, arguments))
    if kind is types.NoneType:
        return ["None"]
    return [str(kind) if arguments else getattr(kind, "__name__", str(kind))]


def check_choice(what: str, value: object, choices: Iterable[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`; the message names what it may be."""
    known = list(choices)
    if value not in known:
        raise ValueError(f"{what} is {value!r}; it must be {', '.join(map(repr, known[:-1]))} or {known[-1]!r}")


def check_name(kind: str, name: object, between: str = "-", reserved: Iterable[str] = ()) -> None:
    """Raise ValueError unless `name` may stand in a list, a command and a path: lower-case words and digits, joined by
    one of the characters `between`.

    Args:
        kind: what is named.
        name: of it.
        between: characters that may stand between two words.
        reserved: words that stand for something else, and "-twin" for all names that end so.
    """
    words = rf"[a-z0-9]+([{re.escape(between)}][a-z0-9]+)*"
    if not isinstance(name, str) or not re.fullmatch(words, name):
        joined = " or ".join(map(repr, between))
        raise ValueError(f"a {kind} is named {name!r}; it must be lower-case words and digits, joined by {joined}")
    for word in reserved:
        if name == word or (word.startswith("-") and name.endswith(word)):
            raise ValueError(f"a {kind} is named {name!r}; {word!r} stands for something else: take another name")


def enter(kind: str, registry: dict[str, V], name: str, entry: V) -> None:
    """Put `entry`, a class or a function, into `registry` under `name`, in the place of an earlier definition of the
    same one, as where a cell of a notebook is run again.

    Raises:
        ValueError: when something else has the name.
    """
    before = registry.get(name)
    if before is not None and _place(before) != _place(entry):
        raise ValueError(f"{kind} {name!r} is {_place(before)} already: give {_place(entry)} another name")
    registry[name] = entry


def _place(entry: object) -> str:
    """Return where a class or a function is defined: its module and its name there."""
    return f"{getattr(entry, '__module__', '')}.{getattr(entry, '__qualname__', repr(entry))}"
