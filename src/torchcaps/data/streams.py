"""Endless sets: images that are composed when they are asked for, each a function of (seed, split, its number)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from torchcaps.data.counter import below, bits
from torchcaps.data.images import Images, resize
from torchcaps.data.sending import sent
from torchcaps.data.splits import ORDER, mix

WIDTH = 64  # random numbers that an image may use
ROUNDS, IMAGES = 0, 1  # what the counters of one key are used for


@dataclass(frozen=True, eq=False)
class Stream:
    """Composed images number 0 .. total - 1, of which `len` are an epoch; subclasses say what an image is.

    A round takes every base image once, in an order that looks random and depends on the key; image k belongs to round
    k // (number of base images). So the images can be read in their own order, and need no permutation.

    Raises:
        ValueError: without base images, for an epoch beyond the stream, and for other channels than the base images
            have, unless these are grey.
    """

    base: Images
    key: int  # int64, of seed and split
    rounds: int  # how often each base image comes first; 2^40 images are the most
    epoch: int = 0  # images of an epoch; 0: all
    side: int = 0  # pixels, of the composed images
    channels: int = 1
    resized: tuple[int, int] | None = None  # height and width, where composed images are then resized

    def __post_init__(self) -> None:
        if not len(self.base):
            raise ValueError("there are no base images to compose from")
        if not 0 <= self.epoch <= self.total:
            raise ValueError(f"{self.epoch} images are asked of a stream of {self.total}")
        held = self.base.shape[0]
        if self.channels < 1 or held not in (1, self.channels):
            right = "at least 1" if held == 1 else str(held)
            raise ValueError(f"compose.channels is {self.channels}, of base images with {held}: it must be {right}")

    def __len__(self) -> int:
        return self.epoch or self.total

    @property
    def total(self) -> int:
        """Return the number of images of the whole stream; `fetch` takes any index below it."""
        return self.rounds * len(self.base)

    @property
    def kept(self) -> int:
        """Return the bytes that composing takes, at least: of what is kept for it, and of one image."""
        return 4 * self.channels * self.side**2

    @property
    def classes(self) -> tuple[str, ...]:
        return self.base.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, *(self.resized or (self.side, self.side))

    @property
    def shown(self) -> int | None:
        return 1

    @property
    def device(self) -> torch.device:
        return self.base.pixels.device

    def fetch(self, indices: Tensor) -> Tensor:
        """Return the images at `indices` int64 [b], on any device: uint8 [b, *shape], or int16 above 255."""
        images = self.compose(sent(indices, self.device))
        return resize(images, self.shape[1:])

    def compose(self, indices: Tensor) -> Tensor:
        """Return the images at `indices` int64 [b] before they are resized: [b, channels, side, side]."""
        raise NotImplementedError

    def targets(self, indices: Tensor) -> Tensor:
        """Return the class of each image, that of the base image: int64 [b]. Sets of several objects give label
        sets.
        """
        return self.base.labels[self.first(sent(indices, self.device))]

    def stream(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        return map(self.fetch, batches)

    def order(self, seed: int, epoch: int) -> Tensor:
        """Return the indices of an epoch of training: those that follow the epoch before, from a start that `seed`
        draws.

        Where whole epochs end with the stream each further pass has a start of its own: its batches are others, and
        what these leave over.
        """
        turn, epoch = divmod(epoch, self.total // len(self)) if self.total % len(self) == 0 else (0, epoch)
        key = (seed, turn) if turn else (seed,)
        start = int(mix(ORDER, *key).generate_state(1, np.uint64)[0]) % self.total
        return (start + epoch * len(self) + torch.arange(len(self))) % self.total

    def to(self, device: torch.device | str) -> Self:
        return replace(self, base=self.base.to(device))

    def random(self, indices: Tensor, columns: int) -> Tensor:
        """Return the first random numbers of each image: int64 [b, columns], to be read by `below` or `unit`."""
        assert columns <= WIDTH, columns
        column = torch.arange(columns, device=self.device)
        return bits(self.key, ((indices[:, None] * WIDTH + column) << 1) + IMAGES)

    def first(self, indices: Tensor) -> Tensor:
        """Return the base image that comes first in each composed one: int64 [b]."""
        count = len(self.base)
        turn = below(bits(self.key, (self.round(indices) << 1) + ROUNDS), count)
        return self._scattered[(indices + turn) % count]

    def round(self, indices: Tensor) -> Tensor:
        """Return which round each image belongs to: int64 [b]."""
        return indices.div(len(self.base), rounding_mode="floor")

    @cached_property
    def _scattered(self) -> Tensor:
        """Return the base images in a random order that depends on the key: int64 [n]."""
        counter = torch.arange(len(self.base)) - 2**62  # far from what images and rounds count
        return bits(self.key, counter).argsort(stable=True).to(self.device)


def padded_bytes(base: Images, side: int) -> int:
    """Return the bytes of `base` and of one more, with so much black around that each can be moved over `side`."""
    channels, height, width = base.shape
    return (len(base) + 1) * channels * (2 * side - height) * (2 * side - width)


def enlarge(pixels: Tensor, side: int) -> Tensor:
    """Return `pixels` uint8 [n, c, h, w] enlarged bilinearly to `side` x `side` in whole numbers, halves rounded up; h,
    w <= side.

    As `images.resize` but for the rounding, which is the same on every device.
    """
    rows, columns = (_weights(length, side) for length in pixels.shape[-2:])
    wide = rows @ pixels.long() @ columns.T
    scale = 4 * side * side
    return ((wide + scale // 2) // scale).to(torch.uint8)


def _weights(length: int, side: int) -> Tensor:
    """Return how much each of `length` pixels gives to each of `side`, in units of 1 / (2 side): int64 [side, length].

    The middle of pixel i lies at (2 i + 1) length / (2 side) - 1/2 of the old ones.
    """
    place = (2 * torch.arange(side) + 1) * length - side
    low = place.div(2 * side, rounding_mode="floor")
    part = place - low * 2 * side
    weights = torch.zeros(side, length, dtype=torch.int64)
    for neighbour, share in ((low, 2 * side - part), (low + 1, part)):
        weights.scatter_add_(1, neighbour.clamp(0, length - 1)[:, None], share[:, None])
    return weights
