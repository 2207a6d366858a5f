"""Batches of a source, in an order and with changes that depend on (seed, epoch, step) alone.

So a run resumed at any step goes on with the same batches, without stored generator state; and R processes together see
what one process would: order and changes are drawn for the joint batch, of which each process takes its rows. That
holds bit for bit on the CPU; on a GPU the sums of standardise "image" and "channel" may round differently in batches of
another size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from torchcaps.config import AugmentConfig, Standardise
from torchcaps.data import prepare, transforms
from torchcaps.data.images import Source, Stored, resize
from torchcaps.data.items import Items
from torchcaps.data.overlap import Overlap, Parts
from torchcaps.data.splits import DRAWS, ORDER, balanced, coins, mix, permutation
from torchcaps.data.streams import Stream


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches of (images, labels) for one of `world` processes.

    `batch_size` counts the joint batch. Without `drop_last` the last one may be smaller, and leave nothing to some
    processes, which then get tensors of length 0: all processes make the same number of steps.

    Raises:
        ValueError: for a batch size below `world`, or above the number of images where the last batch is dropped; for a
            rank outside 0 .. world - 1; for standardise "dataset" without mean and std; for impossible augmentations.
    """

    images: Source
    batch_size: int
    _: KW_ONLY
    seed: int = 0  # not negative
    augment: AugmentConfig | None = None
    standardise: Standardise = "none"
    mean: Tensor | None = None  # [c], of the channels in [0, 1]; for standardise "dataset"
    std: Tensor | None = None  # [c]
    standardise_first: bool = False  # before anything is cut or moved, and after colours are changed
    cut: int | None = None  # pixels a side: anywhere in the image where `augment` is given, else from the middle
    views: Literal[1, 5, 10] = 1  # without `augment`: of each image these crops, as `prepare.crops`
    enlarge: int | None = None  # pixels a side, to which all that comes out is enlarged; None leaves it as it is
    shuffle: bool = False
    balance: bool = False  # with `shuffle`: each class comes as often as any other
    drop_last: bool = False
    rank: int = 0
    world: int = 1
    restarts: ClassVar[bool] = False  # whether an epoch can begin at its first step alone

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank {self.rank} is outside 0 .. {self.world - 1}, the ranks of {self.world} processes")
        if self.batch_size < self.world:
            raise ValueError(f"batch_size {self.batch_size} is below {self.world}, one image for each process")
        if self.drop_last and len(self.images) < self.batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} exceeds the {len(self.images)} images: there would be no batch"
            )
        if self.standardise == "dataset" and (self.mean is None or self.std is None):
            raise ValueError("standardise 'dataset' needs mean and std of the channels")
        if self.balance and (not isinstance(self.images, Stored) or self.images.shown != 1):
            raise ValueError("data.balance is of images that show one class each, and of which there is a list")
        if self.augment is not None:
            transforms.check_augment(self.augment)
            if self.augment.alternate and isinstance(self.images, Stream):
                raise ValueError("augment.alternate is of images that come again each epoch; a stream's do not")

    def __len__(self) -> int:
        """Return the number of steps of an epoch."""
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the batches of `epoch` from step `start` on: images float32 [b, c, h, w] and labels int64 [b].

        The images are in [0, 1] unless standardised or unclipped sums. Several views come as [b, v, c, h, w], label
        sets as uint8 [b, classes] of 0 and 1.

        Raises:
            ValueError: when `start` is outside 0 .. len(self), or `epoch` or the seed is negative.
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"step {start} is outside the {len(self)} steps of an epoch")
        order, size = self._order(epoch), self.batch_size
        batches = [order[step * size :][self._rows(step)] for step in range(start, len(self))]
        return self._generate(epoch, start, batches)

    def parts(self, epoch: int, step: int) -> Parts | None:
        """Return what the images of a step of `epoch` are made of, changed as these are; None where they show one
        object.

        Pixels are float32 [b, m, c, h, w], those of the first view. They are drawn anew, as all is a function of the
        epoch and the step.
        """
        source = self.images
        if not isinstance(source, Overlap) or source.objects == 1:
            return None
        indices = self._order(epoch)[step * self.batch_size :][self._rows(step)]
        parts = source.parts(indices)
        first = replace(self, views=1)
        shape = source.shape[1:]
        pixels = [first._prepare(resize(each, shape), indices, epoch, step) for each in parts.pixels.unbind(1)]
        return parts._replace(pixels=torch.stack(pixels, 1))

    def _generate(self, epoch: int, start: int, batches: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for step, (indices, pixels) in enumerate(zip(batches, self._stream(epoch, start, batches), strict=True), start):
            yield self._prepare(pixels, indices, epoch, step), self.images.targets(indices)

    def _stream(self, epoch: int, start: int, batches: list[Tensor]) -> Iterator[Tensor]:
        if not isinstance(self.images, Items):
            return self.images.stream(batches)
        starts = [step * self.batch_size + self._rows(step).start for step in range(start, start + len(batches))]
        return self.images.drawn(batches, starts, self.seed, epoch)

    def _order(self, epoch: int) -> Tensor:
        seed = mix(ORDER, self.seed, epoch)
        if not self.shuffle:
            return torch.arange(len(self.images))
        if isinstance(self.images, Stream):
            return self.images.order(self.seed, epoch)
        if self.balance:
            assert isinstance(self.images, Stored)
            return balanced(self.images.labels, self.seed, epoch)
        return permutation(len(self.images), seed)

    def _joint(self, step: int) -> int:
        """Return the size of the joint batch of `step`."""
        return min(self.batch_size, len(self.images) - step * self.batch_size)

    def _rows(self, step: int) -> slice:
        """Return the rows of the joint batch that this process takes: contiguous, and as many as any other or one
        fewer.
        """
        joint = self._joint(step)
        return slice(self.rank * joint // self.world, (self.rank + 1) * joint // self.world)

    def _prepare(self, pixels: Tensor, indices: Tensor, epoch: int, step: int) -> Tensor:
        """Return images as a network takes them; so enlarged last, that all before is done at their own size."""
        images = self._evaluated(pixels) if self.augment is None else self._changed(pixels, indices, epoch, step)
        if self.enlarge is None:
            return images
        return transforms.enlarge(images.flatten(0, -4), self.enlarge).unflatten(0, images.shape[:-3])

    def _changed(self, pixels: Tensor, indices: Tensor, epoch: int, step: int) -> Tensor:
        """Return the images as they are trained on, [b, c, h, w], each by its own draws."""
        assert self.augment is not None
        joint = transforms.draw(self.augment, self._joint(step), mix(DRAWS, self.seed, epoch, step))
        draws = joint.rows(self._rows(step))
        if self.augment.alternate:
            draws = draws._replace(flip=coins(indices, self.seed) ^ bool(epoch % 2))
        if self.standardise_first:
            pixels = self._standardise(transforms.recolour(transforms.to_float(pixels), self.augment, draws))
        if self.cut is not None:
            pixels = transforms.cut_at(pixels, draws.cut, self.cut)
        if self.standardise_first:
            return transforms.turn(transforms.move(pixels, self.augment, draws), self.augment, draws)
        return self._standardise(transforms.augment(pixels, self.augment, draws))

    def _evaluated(self, pixels: Tensor) -> Tensor:
        """Return the images as they are measured, [b, c, h, w], or [b, v, c, h, w] of several views."""
        if self.cut is None:
            return self._standardise(transforms.to_float(pixels))
        if self.standardise_first:
            pixels = self._standardise(transforms.to_float(pixels))
        crops = torch.stack(prepare.crops(pixels, self.cut, self.views), 1)
        images = crops.flatten(0, 1)
        images = images if self.standardise_first else self._standardise(transforms.to_float(images))
        return images if self.views == 1 else images.unflatten(0, crops.shape[:2])

    def _standardise(self, images: Tensor) -> Tensor:
        if self.standardise == "image":
            return prepare.standardise_image(images)
        if self.standardise == "channel":
            return prepare.standardise_channel(images)
        if self.mean is not None and self.std is not None and self.standardise == "dataset":
            return prepare.standardise_dataset(images, self.mean.to(images.device), self.std.to(images.device))
        return images
