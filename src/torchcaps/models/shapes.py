"""Whether weights are of a model, before either takes memory: neither a stranger's file nor his record is believed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from torchcaps.files import check_plain
from torchcaps.models.registry import Model


def read_shapes(weights: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a safetensors file, of which only the head is read.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it is damaged, or no plain file.
    """
    from safetensors import SafetensorError, safe_open

    check_plain(weights)
    try:
        with safe_open(str(weights), "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dictionary
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def check_shapes(build: Callable[[], Model], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError unless the model that `build` builds may take weights of `shapes`; no memory is taken for it.

    So a stranger's model.json cannot ask for any amount. Of what cannot be built nothing is said: building it does.
    """
    try:
        with torch.device("meta"):
            bare = build().state_dict(keep_vars=True)
    except (RuntimeError, ValueError):
        return
    for name, shape in shapes.items():
        if name in bare and bare[name].shape != shape:
            raise ValueError(f"its model has {name} of {list(bare[name].shape)}, but its weights have {list(shape)}")
    kept = {id(bare[name]) for name in shapes if name in bare}
    missing = {name: tensor for name, tensor in bare.items() if id(tensor) not in kept}
    if sum(tensor.numel() for tensor in missing.values()) > sum(map(math.prod, shapes.values())):
        raise ValueError(f"its model has {', '.join(sorted(missing)[:3])}, which its weights have not")
