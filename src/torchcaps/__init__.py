"""Capsule networks in PyTorch: every efficient way to route capsules, verified and fast.

The names below are imported on first use, so that the command line can answer without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchcaps.capsules import Capsules, lengths, squash
    from torchcaps.layers import CapsuleLayer, CapsuleStack, pack
    from torchcaps.models import Model, Output, create_model, list_models
    from torchcaps.routing import Routing, create_routing, list_routings
    from torchcaps.votes import ConvVotes, LinearVotes, Votes

__version__ = "0.1.0.dev0"

_HOMES = {
    "capsules": ("Capsules", "lengths", "squash"),
    "layers": ("CapsuleLayer", "CapsuleStack", "pack"),
    "models": ("Model", "Output", "create_model", "list_models"),
    "routing": ("Routing", "create_routing", "list_routings"),
    "votes": ("ConvVotes", "LinearVotes", "Votes"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022 - in the order in which data flows
    "Capsules", "lengths", "squash",
    "Votes", "LinearVotes", "ConvVotes",
    "Routing", "create_routing", "list_routings",
    "CapsuleLayer", "CapsuleStack", "pack",
    "Model", "Output", "create_model", "list_models",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'torchcaps' has no attribute {name!r}")
    return getattr(import_module(f"torchcaps.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
