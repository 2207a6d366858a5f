"""Capsule networks in PyTorch: every efficient way to route capsules, verified and fast.

The names below are imported on first use, so that the command line can answer without importing torch.
"""

from typing import TYPE_CHECKING

from torchcaps.lazy import resolver

if TYPE_CHECKING:
    from torchcaps.capsules import Capsules, lengths, squash
    from torchcaps.deploy import load
    from torchcaps.layers import CapsuleLayer, CapsuleStack, choose
    from torchcaps.models import CapsuleHead, HeadedModel, Model, Output, create_model, list_models
    from torchcaps.packed import pack
    from torchcaps.routing import Routing, create_routing, list_routings
    from torchcaps.votes import ConvVotes, LinearVotes, Votes

__version__ = "0.1.0.dev0"

_HOMES = {
    "capsules": ("Capsules", "lengths", "squash"),
    "deploy": ("load",),
    "layers": ("CapsuleLayer", "CapsuleStack", "choose"),
    "packed": ("pack",),
    "models": ("CapsuleHead", "HeadedModel", "Model", "Output", "create_model", "list_models"),
    "routing": ("Routing", "create_routing", "list_routings"),
    "votes": ("ConvVotes", "LinearVotes", "Votes"),
}

__all__ = [  # noqa: RUF022 - in the order in which data flows
    "Capsules", "lengths", "squash",
    "Votes", "LinearVotes", "ConvVotes",
    "Routing", "create_routing", "list_routings",
    "CapsuleLayer", "CapsuleStack", "choose", "pack",
    "CapsuleHead", "HeadedModel", "Model", "Output", "create_model", "list_models",
    "load",
]  # fmt: skip

__getattr__ = resolver(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
