"""Digits seen from elsewhere: moved over a larger canvas (expanded MNIST), and turned, sheared and stretched as those
of affNIST. Both are functions of (seed, split, number of the image) in whole-number arithmetic, as all streams are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torchcaps.data.counter import below, bits, unit
from torchcaps.data.streams import Stream, padded_bytes

# affNIST's ranges (https://www.cs.toronto.edu/~tijmen/affNIST/), all uniform
ROTATION = 20.0  # degrees, to both sides
SHEAR = 0.2  # pixels sideways for each pixel downwards, to both sides
EXPANSION = 0.2  # relative change of height and, independently, of width

FRACTION = 8  # bits of a pixel's fraction in bilinear interpolation
ORDER_OF_SHIFTS = 2**61  # where the counters of the order of shifts begin, far from those of images


@dataclass(frozen=True, eq=False)
class Shifted(Stream):
    """Every base image at every shift of -shift .. shift whole pixels along both axes, each once.

    The number of rounds is that of the shifts, (2 shift + 1) squared; in each round an image is seen at one of them.

    Raises:
        ValueError: for a side that is too small.
    """

    shift: int = 6  # pixels

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds > self._shifts:
            raise ValueError(f"compose.per_image is {self.rounds}: there are {self._shifts} shifts of one image")
        if self.side < (needed := max(self.base.shape[1:]) + 2 * self.shift):
            raise ValueError(f"compose.size is {self.side}: shifts of {self.shift} pixels need {needed}")

    @property
    def kept(self) -> int:
        return padded_bytes(self.base, self.side) + super().kept

    @property
    def _shifts(self) -> int:
        return (2 * self.shift + 1) ** 2

    def compose(self, indices: Tensor) -> Tensor:
        chosen = self.first(indices)
        moves = self.moves(indices, chosen)
        top, left = (self._slack - self._slack // 2 - moves).unbind(1)
        images = self._windows[chosen, :, top, left]
        return images.expand(-1, self.channels, -1, -1)

    def moves(self, indices: Tensor, chosen: Tensor) -> Tensor:
        """Return how far base image `chosen` [b] has moved in image `indices` [b]: int64 [b, 2], down and to the
        right.
        """
        begin = below(bits(self.key, ORDER_OF_SHIFTS + chosen), self._shifts)
        number = self._order_of_shifts[(begin + self.round(indices)) % self._shifts]
        width = 2 * self.shift + 1
        return torch.stack([number // width, number % width], 1) - self.shift

    @cached_property
    def _order_of_shifts(self) -> Tensor:
        counter = torch.arange(self._shifts) - ORDER_OF_SHIFTS
        return bits(self.key, counter).argsort(stable=True).to(self.device)

    @cached_property
    def _slack(self) -> Tensor:
        """Return how many rows and columns a base image leaves free: int64 [2]."""
        return torch.tensor([self.side - length for length in self.base.shape[1:]], device=self.device)

    @cached_property
    def _windows(self) -> Tensor:
        """Return the images that show a base image at every place: a view [n, c, place, place, side, side]."""
        down, right = self._slack.tolist()
        padded = F.pad(self.base.pixels, (right, right, down, down))
        return padded.unfold(2, self.side, 1).unfold(3, self.side, 1)


class Pose(NamedTuple):
    """How base images were changed, in this order; float64 [b] each."""

    angle: Tensor  # degrees, counter-clockwise
    shear: Tensor  # pixels to the right for each pixel downwards
    height: Tensor  # factor
    width: Tensor  # factor


@dataclass(frozen=True, eq=False)
class Affine(Stream):
    """Base images turned, then sheared, then stretched in height and width, then moved to a place where all ink stays.

    The ranges are affNIST's; the move is of whole pixels, each that keeps all ink inside equally likely, and what is
    too large for the image lies in its middle. Interpolation is bilinear in steps of 1/256 pixel.

    Raises:
        ValueError: for a side below one pixel.
    """

    rotation: float = ROTATION
    shear: float = SHEAR
    expansion: float = EXPANSION

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.side < 1:
            raise ValueError(f"compose.size is {self.side}: it must be at least one pixel")

    def compose(self, indices: Tensor) -> Tensor:
        random = self.random(indices, 6)
        turned = self.transform(self.first(indices), self.pose(indices))  # [b, c, canvas, canvas]
        ink = turned.amax(1)  # [b, canvas, canvas]
        corner = torch.stack([self._corner(ink.amax(2), random[:, 4]), self._corner(ink.amax(1), random[:, 5])], 1)
        framed = F.pad(turned, (1, 1, 1, 1))  # what lies beside the canvas reads the black around it
        last = torch.tensor(framed.shape[-2:], device=self.device)[:, None] - 1
        place = corner[:, :, None] + 1 + torch.arange(self.side, device=self.device)  # [b, 2, side]
        rows, columns = place.clamp(min=0).minimum(last).unbind(1)
        b, c = turned.shape[:2]
        image = torch.arange(b, device=self.device)[:, None, None, None]
        channel = torch.arange(c, device=self.device)[:, None, None]
        images = framed[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
        return images.expand(-1, self.channels, -1, -1)

    def pose(self, indices: Tensor) -> Pose:
        """Return how the images at `indices` int64 [b] are turned, sheared and stretched."""
        drawn = 2 * unit(self.random(indices.to(self.device), 4)) - 1  # [b, 4] in [-1, 1)
        angle, shear, height, width = drawn.unbind(1)
        return Pose(self.rotation * angle, self.shear * shear, 1 + self.expansion * height, 1 + self.expansion * width)

    def transform(self, chosen: Tensor, pose: Pose) -> Tensor:
        """Return base images `chosen` [b] in a `pose`, about the middle of a canvas twice their size: uint8 [b, c,
        2h, 2w].
        """
        _, h, w = self.base.shape
        matrix = source_matrix(pose)  # [b, 2, 2]
        steps = (
            (matrix * 2**16).round_().long().to(self.device)
        )  # in 1/65536 pixel; rounded, it is the same on every machine
        half_y = 2 * torch.arange(2 * h, device=self.device) + 1 - 2 * h  # half pixels from the middle
        half_x = 2 * torch.arange(2 * w, device=self.device) + 1 - 2 * w
        a, b, c, d = steps.flatten(1)[:, :, None, None].unbind(1)  # each [b, 1, 1]
        # Where a pixel comes from, in 1/131072 pixel from the middle, then in 1/256 from the middle of the first pixel.
        x = ((a * half_x + b * half_y[:, None]) >> 9) + ((w - 1) << (FRACTION - 1))
        y = ((c * half_x + d * half_y[:, None]) >> 9) + ((h - 1) << (FRACTION - 1))
        return self._interpolate(chosen, y, x)

    def _interpolate(self, chosen: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Return base images `chosen` [b], interpolated at rows y and columns x, int64 [b, v, u] in 1/256 pixel: uint8
        [b, c, v, u].
        """
        channels, h, w = self.base.shape
        row, column = (y >> FRACTION).clamp(-2, h) + 2, (x >> FRACTION).clamp(-2, w) + 2  # in the framed image
        one = 1 << FRACTION
        down, right = (y & (one - 1)).int(), (x & (one - 1)).int()
        frame = self._framed.shape[-1]
        planes = []
        for channel in range(channels):
            flat = self._framed[:, channel].reshape(-1)
            start = (chosen * ((h + 4) * frame))[:, None, None] + row * frame + column
            corners = [flat[start + offset].int() for offset in (0, 1, frame, frame + 1)]
            upper = corners[0] * (one - right) + corners[1] * right
            lower = corners[2] * (one - right) + corners[3] * right
            planes.append((upper * (one - down) + lower * down + one * one // 2) >> (2 * FRACTION))
        return torch.stack(planes, 1).to(torch.uint8)

    def _corner(self, ink: Tensor, random: Tensor) -> Tensor:
        """Return where the image begins along one axis of the canvas, perhaps before it: int64 [b]; `ink` [b, canvas]
        is 0 where a line is empty.
        """
        canvas = ink.shape[1]
        place = torch.arange(canvas, device=self.device)
        first = torch.where(ink > 0, place, canvas).amin(1)
        last = torch.where(ink > 0, place, -1).amax(1)
        blank = last < 0
        first, last = first.masked_fill(blank, canvas // 2), last.masked_fill(blank, canvas // 2)
        low, high = last + 1 - self.side, first  # all ink is inside from low to high
        drawn = low + below(random, (high - low + 1).clamp(min=1))
        return torch.where(low <= high, drawn, (low + high) // 2)

    @cached_property
    def _framed(self) -> Tensor:
        """Return the base images with two black rows and columns around: places outside read black."""
        return F.pad(self.base.pixels, (2, 2, 2, 2))


def source_matrix(pose: Pose) -> Tensor:
    """Return where a point (x, y) of the result, y downwards from the middle, was before: float64 [b, 2, 2].

    The inverse of diag(width, height) times shear [[1, shear], [0, 1]] times rotation [[cos, sin], [-sin, cos]].
    """
    turn = pose.angle * (math.pi / 180)
    cos, sin = torch.cos(turn), torch.sin(turn)
    zero = torch.zeros_like(turn)
    unstretch = torch.stack([1 / pose.width, zero, zero, 1 / pose.height], 1).unflatten(1, (2, 2))
    unshear = torch.stack([zero + 1, -pose.shear, zero, zero + 1], 1).unflatten(1, (2, 2))
    unturn = torch.stack([cos, -sin, sin, cos], 1).unflatten(1, (2, 2))
    return unturn @ unshear @ unstretch
