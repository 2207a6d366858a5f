"""Images with labels: what a source of data has to offer, and the one that holds all its pixels in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

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
    def labels(self) -> Tensor:
        """int64 [n]."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        ...

    def __len__(self) -> int: ...

    def fetch(self, indices: Tensor) -> Tensor:
        """The images at `indices` int64 [b], on any device: uint8 [b, c, h, w]."""
        ...

    def stream(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """`fetch` of each of the `batches` of indices in turn, prepared ahead where that saves time."""
        ...

    def subset(self, indices: Tensor) -> Self:
        """The images at `indices` int64 [m], in this order."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """The same, on `device`."""
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

    def fetch(self, indices: Tensor) -> Tensor:
        return self.pixels[indices.to(self.pixels.device, non_blocking=True)]

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


def check_labels(labels: Tensor, classes: tuple[str, ...]) -> None:
    """Raise ValueError, naming the label, unless each of `labels` int64 [n] is an index into `classes`."""
    outside = labels[(labels < 0) | (labels >= len(classes))]
    if len(outside):
        raise ValueError(f"label {outside[0].item()} is outside the {len(classes)} classes 0 .. {len(classes) - 1}")


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Images at `size` (height, width), whatever their proportions: uint8 [n, c, h, w] -> uint8 [n, c, *size].

    Bilinear, with antialiasing where it shrinks, rounded to the nearest integer.
    """
    if pixels.shape[-2:] == size:
        return pixels
    if not len(pixels):
        return pixels.new_empty(*pixels.shape[:2], *size)
    if not len(pixels):
        return pixels.new_empty(*pixels.shape[:2], *size)
    wide = F.interpolate(pixels.float(), size, mode="bilinear", antialias=True)
    return wide.round_().clamp_(0, 255).to(torch.uint8)
