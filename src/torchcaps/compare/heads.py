"""The names of heads: routings, their twins, the plain head and plain networks; and which of them are controls.

Nothing here imports torch before heads are listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torchcaps.names import LINEAR, OF_TWIN, TWIN, YOURS, unknown

TWINNED = "dynamic"  # whose head's twin `twin` is: as large as the heads of all routings that take vectors
CONTROLS = (LINEAR, "uniform", TWIN)  # in front, in every table


def is_network(head: str) -> bool:
    """Return whether a row is a plain network of timm's, such as "resnet18.linear"."""
    return head.endswith(f".{LINEAR}")


def is_twin(head: str) -> bool:
    """Return whether a head is a convolutional twin: the one of most heads, or that of one routing, NAME-twin."""
    return head == TWIN or head.endswith(OF_TWIN)


def is_control(head: str) -> bool:
    """Return whether a row is a control, with whatever value of a sweep."""
    head = head.partition("@")[0]
    return head in CONTROLS or is_twin(head)


def all_heads() -> list[str]:
    """Return the controls, then every other routing by name, and its twin where `twin` is of another size."""
    from torchcaps.routing import list_routings

    heads: list[str] = [*CONTROLS]
    for spec in list_routings():
        if spec.name not in CONTROLS:
            other = spec.takes.matrix or spec.needs_activations
            heads += [spec.name, *([f"{spec.name}{OF_TWIN}"] if other else [])]
    return heads


def choose_heads(wanted: Sequence[str]) -> list[str]:
    """Return `wanted`, or all heads where none is; the controls are always among them, in front, and twins behind
    theirs.

    Args:
        wanted: names of routings or shell patterns of them, and plain networks of timm's, such as "resnet18.linear",
            which stand behind.

    Raises:
        ValueError: for a name that is none; the nearest is named.
    """
    every = all_heads()
    networks = [name for name in wanted if is_network(name)]
    if networks:
        from torchcaps.models.registry import find_factory

        for name in networks:
            find_factory(name)
    others = [name for name in wanted if name not in networks]
    for name in others:
        if not any(fnmatchcase(each, name) for each in every):
            raise unknown(
                "routing", name, every, f"`torchcaps list routings` shows all; 'linear' is the plain head; {YOURS}"
            )
    chosen = [
        name
        for name in every
        if name in CONTROLS
        or any(fnmatchcase(name, each) or fnmatchcase(name.removesuffix(OF_TWIN), each) for each in others)
    ]
    return [*(chosen if wanted else every), *dict.fromkeys(networks)]
