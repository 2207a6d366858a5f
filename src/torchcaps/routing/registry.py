"""The one list of routings: names, classes, and the errors for a name that is not there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torchcaps.names import RESERVED, YOURS, check_name, check_options, enter, unknown
from torchcaps.plugins import load_plugins
from torchcaps.routing.interface import Routing, Sizes, Spec

R = TypeVar("R", bound=type[Routing[Any]])
_ROUTINGS: dict[str, type[Routing[Any]]] = {}


def register_routing(routing: R) -> R:
    """Put a class into the one list, under the name in its spec. Defined again, it takes the place of what it was.

    Raises:
        TypeError: for what is no class of routings with a spec.
        ValueError: for a name that no routing can have, or that another one has.
    """
    if not (isinstance(routing, type) and issubclass(routing, Routing)):
        raise TypeError(f"register_routing was given {routing!r}; it takes a subclass of Routing")
    if not isinstance(getattr(routing, "spec", None), Spec):
        raise TypeError(f"{routing.__qualname__} has no spec; give the class one: spec = Spec(name=..., paper=...)")
    check_name("routing", routing.spec.name, reserved=RESERVED)
    enter("routing", _ROUTINGS, routing.spec.name, routing)
    return routing


def list_routings() -> list[Spec]:
    """Return the specs of all registered routings, in the order of their names."""
    load_plugins()
    return [_ROUTINGS[name].spec for name in sorted(_ROUTINGS)]


def routing_class(name: str) -> type[Routing[Any]]:
    """Return the class registered under `name`.

    Raises:
        TypeError: for what is no name.
        ValueError: for another name; the nearest one is named.
    """
    if not isinstance(name, str):
        raise TypeError(f"routing is {name!r}; it must be a registered name, such as 'dynamic'")
    load_plugins()
    if name not in _ROUTINGS:
        raise unknown("routing", name, _ROUTINGS, f"`torchcaps list routings` shows all; {YOURS}")
    return _ROUTINGS[name]


def create_routing(name: str, children: int, parents: int, pose: int, **options: object) -> Routing[Any]:
    """Build a registered routing.

    Args:
        name: one of `list_routings()`.
        children: capsules per position that vote, kernel places included.
        parents: capsules per position that are voted for.
        pose: elements of a parent's pose.
        options: keyword arguments of the algorithm.

    Raises:
        ValueError: for an unknown name (the nearest is named), unknown options, or sizes below 1.
    """
    factory: Callable[..., Routing[Any]] = routing_class(name)
    if "iterations" in options and "iterations" not in inspect.signature(factory).parameters:
        raise ValueError(
            f"iterations are no option of routing {name!r}: give them to a layer's call, layer(children, 3), to "
            "CapsuleStack or to CapsuleHead"
        )
    check_options(f"routing {name!r}", factory, options)
    return factory(Sizes(children, parents, pose), **options)
