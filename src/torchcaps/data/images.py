"""Images with labels: what a source of data has to offer, and the one that holds all its pixels in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

RESIZE_CHUNK = 2048  # images that are floats at one time


class Source(Protocol):
    """What batches are made from. Pixels and labels come on the device that `to` names, the CPU at first."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names; a label is an index into them."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        ...

    @property
    def shown(self) -> int | None:
        """Labels of each image; None where images differ in it."""
        ...

    def __len__(self) -> int:
        """Images of an epoch."""
        ...

    def fetch(self, indices: Tensor) -> Tensor:
        """The images at `indices` int64 [b], on any device: uint8 [b, c, h, w]; int16 where values exceed 255."""
        ...

    def targets(self, indices: Tensor) -> Tensor:
        """Their labels: int64 [b], or where images have several, label sets uint8 [b, classes] of 0 and 1."""
        ...

    def stream(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """`fetch` of each of the `batches` of indices in turn, prepared ahead where that saves time."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """The same, on `device`."""
        ...


@runtime_checkable
class Stored(Source, Protocol):
    """Images of which there is a list: their labels can be read at once, and some of them be set aside."""

    @property
    def labels(self) -> Tensor:
        """int64 [n]."""
        ...

    def subset(self, indices: Tensor) -> Self:
        """The images at `indices` int64 [m], in this order."""
        ...


@dataclass(frozen=True, eq=False)
class Images:
    """Images in memory.

    Raises:
        ValueError: for another type or shape of pixels or labels, and for a label without a class.
    """

    pixels: Tensor  # uint8 [n, c, h, w]
    labels: Tensor  # int64 [n]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4:
            found = f"{self.pixels.dtype} {list(self.pixels.shape)}"
            raise ValueError(f"pixels must be torch.uint8 [n, c, h, w], got {found}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.pixels.shape[:1]:
            found = f"{self.labels.dtype} {list(self.labels.shape)}"
            raise ValueError(f"labels must be torch.int64 [{len(self.pixels)}], one per image, got {found}")
        check_labels(self.labels, self.classes)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        _, c, h, w = self.pixels.shape
        return c, h, w

    @property
    def shown(self) -> int | None:
        return 1

    def fetch(self, indices: Tensor) -> Tensor:
        return self.pixels.index_select(0, indices.to(self.pixels.device, non_blocking=True))

    def targets(self, indices: Tensor) -> Tensor:
        return self.labels[indices.to(self.labels.device, non_blocking=True)]

    def stream(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        return map(self.fetch, batches)

    def subset(self, indices: Tensor) -> Images:
        return Images(self.fetch(indices), self.labels[indices.to(self.labels.device)], self.classes)

    def to(self, device: torch.device | str) -> Images:
        return Images(self.pixels.to(device), self.labels.to(device), self.classes)

    def resize(self, size: tuple[int, int]) -> Images:
        """The same at `size` (height, width); see `resize`."""
        if self.shape[1:] == size:
            return self
        chunks = [resize(chunk, size) for chunk in self.pixels.split(RESIZE_CHUNK)]
        return Images(torch.cat(chunks), self.labels, self.classes)

    def pad(self, side: int) -> Images:
        """The same in the middle of black squares of `side` pixels; of an odd rest the larger part is right and below.

        Raises:
            ValueError: when the images are larger.
        """
        height, width = self.shape[1:]
        if side < max(height, width):
            raise ValueError(f"data.pad is {side}: images of {height}x{width} pixels need {max(height, width)} or more")
        top, left = (side - height) // 2, (side - width) // 2
        padded = F.pad(self.pixels, (left, side - width - left, top, side - height - top))
        return Images(padded, self.labels, self.classes)


def check_labels(labels: Tensor, classes: tuple[str, ...]) -> None:
    """Raise ValueError, naming the label, unless each of `labels` int64 [n] is an index into `classes`."""
    outside = labels[(labels < 0) | (labels >= len(classes))]
    if len(outside):
        raise ValueError(f"label {outside[0].item()} is outside the {len(classes)} classes 0 .. {len(classes) - 1}")


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Images at `size` (height, width), whatever their proportions: [n, c, h, w] -> [n, c, *size] of the same type.

    Bilinear, with antialiasing where it shrinks, rounded to the nearest integer. uint8, or int16 from 0 on.
    """
    if pixels.shape[-2:] == size:
        return pixels
    if not len(pixels):
        return pixels.new_empty(*pixels.shape[:2], *size)
    wide = F.interpolate(pixels.float(), size, mode="bilinear", antialias=True)
    return wide.round_().clamp_(0, 255 if pixels.dtype == torch.uint8 else None).to(pixels.dtype)
