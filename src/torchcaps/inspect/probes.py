"""What the line of an epoch says of the network's inside, where the config asks for it: callbacks of `fit`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from torchcaps.config import Config
from torchcaps.data import Data
from torchcaps.inspect.agreement import measure_agreement
from torchcaps.models import Model
from torchcaps.train import Callback

BATCH = 8  # votes are compared one by one: all of a batch are there at once


class AgreementProbe(Callback):
    """Measure at the end of each epoch how votes agree with their parents, see `inspect.measure_agreement`.

    Args:
        images: of the training split, the first ones, unchanged.
    """

    answers = ("agreement",)

    def __init__(self, images: int):
        self.images = images

    def on_epoch_end(self, epoch: int, model: Model, data: Data) -> dict[str, Any]:
        """Return `agreement`, by layer. Nothing is drawn at random."""
        found = measure_agreement(model, _first(data, self.images))
        return {"agreement": {name: asdict(each) for name, each in found.items()}}


def find_probes(config: Config) -> list[Callback]:
    """Return the callbacks that a config asks for; none for most."""
    return [AgreementProbe(config.agreement)] if config.agreement else []


def _first(data: Data, images: int) -> Iterator[tuple[Tensor, Tensor]]:
    for pixels, labels in data.evaluation("train", BATCH).epoch(0):
        yield pixels[:images].contiguous(memory_format=torch.channels_last), labels[:images]
        images -= len(labels)
        if images <= 0:
            return
