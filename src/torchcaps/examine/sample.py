"""The images that a network is examined on, as they are or each changed by a known amount."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from torchcaps.config import LossConfig
from torchcaps.data import Batches, Source
from torchcaps.data.transforms import affine, shift
from torchcaps.losses import multi_hot, score_threshold
from torchcaps.metrics import predict
from torchcaps.models import Model, Output

BATCH = 32  # images whose couplings, of all layers and iterations, are held at one time


@dataclass(frozen=True)
class Move:
    """By how much each image is changed: sheared, scaled, turned, then shifted; all [n] on the CPU."""

    angle: Tensor  # degrees, counter-clockwise
    scale: Tensor  # factor
    shear: Tensor  # degrees
    down: Tensor  # whole pixels
    right: Tensor  # whole pixels

    @staticmethod
    def none(count: int) -> Move:
        """Return as the images are."""
        zero = torch.zeros(count)
        return Move(zero, zero + 1, zero, zero.long(), zero.long())

    def rows(self, indices: Tensor) -> Move:
        return Move(*(getattr(self, name)[indices] for name in ("angle", "scale", "shear", "down", "right")))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return pixels [n, c, h, w] of any type, bilinear, and rounded where they are whole numbers; zeros enter."""
        images = affine(pixels.float(), self.angle, self.scale, self.shear)
        if not pixels.is_floating_point():
            images = images.round_()
        by = torch.stack([self.down, self.right], 1)
        return shift(images, by, int(by.abs().max())).to(pixels.dtype)


@dataclass(frozen=True, eq=False)
class Chosen:
    """A source of some images of `base`, in any order and as often as they are named; see `Source`."""

    base: Source
    indices: Tensor  # int64 [n], on the CPU
    move: Move | None = None  # of these n

    @property
    def classes(self) -> tuple[str, ...]:
        return self.base.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.base.shape

    @property
    def shown(self) -> int | None:
        return self.base.shown

    def __len__(self) -> int:
        return len(self.indices)

    def fetch(self, indices: Tensor) -> Tensor:
        indices = indices.cpu()
        pixels = self.base.fetch(self.indices[indices])
        return pixels if self.move is None else self.move.rows(indices)(pixels)

    def targets(self, indices: Tensor) -> Tensor:
        return self.base.targets(self.indices[indices.cpu()])

    def stream(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        return map(self.fetch, batches)

    def to(self, device: torch.device | str) -> Self:
        return replace(self, base=self.base.to(device))


@dataclass(frozen=True, eq=False)
class Sample:
    """Some images of a split, evenly spaced in its order, one view of each.

    Args:
        batches: of the split, without changes.
        loss: that the network was trained with.
        count: images at most, at least 1.
        size: images of a batch.

    Raises:
        ValueError: for a count below 1.
    """

    batches: Batches
    loss: LossConfig
    count: int = 500
    size: int = BATCH

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"images is {self.count}; a network is examined on at least 1")

    def __len__(self) -> int:
        return min(self.count, len(self.batches.images))

    @property
    def classes(self) -> tuple[str, ...]:
        return self.batches.images.classes

    @property
    def side(self) -> int:
        """Return the shorter one of the images, in pixels."""
        return min(self.batches.images.shape[1:])

    @cached_property
    def indices(self) -> Tensor:
        """Return their places in the split, int64 [n]."""
        return torch.arange(len(self)) * len(self.batches.images) // len(self)

    @cached_property
    def targets(self) -> Tensor:
        """Return what they show, bool [n, classes], on the CPU."""
        labels = self.batches.images.targets(self.indices)
        return multi_hot(labels, len(self.classes)).bool().cpu()

    def stream(self, rows: Tensor | None = None, move: Move | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Return images [b, c, h, w] as a network takes them, and their labels, in batches of `size`.

        Args:
            rows: of the sample, int64 [n], in this order; None: all.
            move: by how much each of them is changed.
        """
        indices = self.indices if rows is None else self.indices[rows]
        chosen = Chosen(self.batches.images, indices, move)
        return replace(self.batches, images=chosen, batch_size=self.size, views=1).epoch(0)

    def predict(self, scores: Tensor) -> Tensor:
        """Return the classes that scores [b, classes] say, bool [b, classes], on the CPU."""
        shown = self.batches.images.shown
        return predict(scores, shown, score_threshold(self.loss)).cpu()

    @torch.no_grad()
    def answers(self, model: Model, rows: Tensor | None = None, move: Move | None = None) -> Tensor:
        """Return what `model` says of the images, bool [n, classes]; see `stream`."""
        return torch.cat([self.predict(take(model, images).scores) for images, _ in self.stream(rows, move)])


def take(model: Model, images: Tensor, labels: Tensor | None = None) -> Output:
    """Return what a model in evaluation mode makes of images; a decoder paints the class of `labels`, where given."""
    return model(images.contiguous(memory_format=torch.channels_last), labels)
