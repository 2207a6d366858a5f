"""Capsule networks in PyTorch: efficient ways to route capsules, verified and fast.

The names below, to build a network, train it and use it, are imported on first use, so that the command line can
answer without importing torch. `fit` needs what `pip install "torchcaps[train]"` brings; without it, asking for `fit`
raises ModuleNotFoundError, which says so, and so does `from torchcaps import *`.
"""

from typing import TYPE_CHECKING

from torchcaps.lazy import resolver

if TYPE_CHECKING:
    from torchcaps.capsules import Capsules
    from torchcaps.config import Config
    from torchcaps.deploy import load
    from torchcaps.layers import (
        CapsuleLayer,
        CapsuleStack,
        ConvTransform,
        LinearTransform,
        PooledTransform,
        PrimaryCapsules,
        choose,
    )
    from torchcaps.models import CapsuleHead, HeadedModel, create_model, list_models, register_model
    from torchcaps.routing import Routing, create_routing, list_routings, register_routing
    from torchcaps.train import fit

__version__ = "0.1.0.dev0"

_HOMES = {
    "capsules": ("Capsules",),
    "config": ("Config",),
    "deploy": ("load",),
    "layers": (
        "CapsuleLayer",
        "CapsuleStack",
        "ConvTransform",
        "LinearTransform",
        "PooledTransform",
        "PrimaryCapsules",
        "choose",
    ),
    "models": ("CapsuleHead", "HeadedModel", "create_model", "list_models", "register_model"),
    "routing": ("Routing", "create_routing", "list_routings", "register_routing"),
    "train": ("fit",),
}

__all__ = [  # noqa: RUF022 - in the order in which data flows
    "LinearTransform", "ConvTransform", "PooledTransform",
    "PrimaryCapsules", "CapsuleLayer", "CapsuleStack", "CapsuleHead", "HeadedModel", "Capsules",
    "Routing", "register_routing", "create_routing", "list_routings",
    "create_model", "list_models", "register_model",
    "Config", "fit", "load", "choose",
]  # fmt: skip

__getattr__ = resolver(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
