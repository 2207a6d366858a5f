"""What the line of an epoch says of the network's inside, where the config asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from torchcaps.data import Data
from torchcaps.models import Model

BATCH = 8  # votes are compared one by one: all of a batch are there at once


def measure_dynamics(model: Model, data: Data, images: int) -> dict[str, Any]:
    """`agreement`: see `inspect.measure_agreement`, by layer, on the first `images` of the training split, unchanged.

    Nothing for 0 images. Nothing is drawn at random, so training goes on as if it had not been measured.
    """
    if not images:
        return {}
    from torchcaps.inspect.agreement import measure_agreement

    found = measure_agreement(model, _first(data, images))
    return {"agreement": {name: asdict(each) for name, each in found.items()}}


def _first(data: Data, images: int) -> Iterator[tuple[Tensor, Tensor]]:
    for pixels, labels in data.evaluation("train", BATCH).epoch(0):
        yield pixels[:images].contiguous(memory_format=torch.channels_last), labels[:images]
        images -= len(labels)
        if images <= 0:
            return
