"""Overlapped objects: MultiMNIST (Sabour, Frosst and Hinton 2017, section 6) and DiverseMultiMNIST (Tsai et al. 2020,
appendix B.2), over any set of small images.

Image k shows base image `first(k)` and others of other classes, each moved by its own whole number of pixels, overlaid.
All of it is whole-number arithmetic, so image k has the same pixels on every device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torchcaps.data.counter import below
from torchcaps.data.sending import sent
from torchcaps.data.streams import WIDTH, Stream, padded_bytes

OVERLAYS = ("clip", "max", "mean", "sum")
MOST_SUMMED = 8  # objects whose unclipped sum `load.moments` counts


class Parts(NamedTuple):
    """What some composed images are made of."""

    pixels: Tensor  # [b, m, c, h, w], each object alone, where it is; black where there is none
    labels: Tensor  # int64 [b, m], -1 where there is none
    base: Tensor  # int64 [b, m], which base image, -1 where there is none


class Place(NamedTuple):
    """Which objects composed images show, and where."""

    base: Tensor  # int64 [b, m], which base image; their number where there is none
    label: Tensor  # int64 [b, m]; the number of classes where there is none
    corner: Tensor  # int64 [b, m, 2], top and left in the composed image


@dataclass(frozen=True, eq=False)
class Overlap(Stream):
    """Images of several objects of different classes, with label sets uint8 [b, classes] of 0 and 1.

    Raises:
        ValueError: for more objects than classes or below one, an unknown overlay, and a side that is too small.
    """

    objects: int = 2
    single: int = 0  # one image in so many shows one object alone; 0: none does
    shift: int = 4  # pixels
    overlay: str = "clip"

    def __post_init__(self) -> None:
        super().__post_init__()
        present = len(self.base.labels.unique())
        if not 1 <= self.objects <= min(present, (WIDTH - 1) // 3):
            raise ValueError(
                f"compose.objects is {self.objects}: of {present} classes that have images, one each can be shown"
            )
        if self.overlay not in OVERLAYS:
            raise ValueError(f"compose.overlay is {self.overlay!r}: it must be one of {', '.join(OVERLAYS)}")
        if self.overlay == "sum" and self.objects > MOST_SUMMED:
            raise ValueError(f"compose.objects is {self.objects}: at most {MOST_SUMMED} are summed without clipping")
        if self.single < 0 or self.shift < 0:
            raise ValueError(f"compose.single {self.single} and compose.shift {self.shift} must not be negative")
        needed = max(self.base.shape[1:]) + 2 * self.shift
        if self.side < needed:
            raise ValueError(f"compose.size is {self.side}: shifts of {self.shift} pixels need {needed}")

    @property
    def kept(self) -> int:
        return padded_bytes(self.base, self.side) + super().kept

    @property
    def shown(self) -> int | None:
        return None if self.single else self.objects

    def compose(self, indices: Tensor) -> Tensor:
        place = self.place(indices)
        layers = (self._draw(place, m) for m in range(self.objects))
        composed = next(layers)
        if self.overlay in ("mean", "sum"):
            composed = composed.short()
        for layer in layers:
            if self.overlay == "clip":
                composed += torch.minimum(layer, ~composed)  # ~ is what is missing to 255
            elif self.overlay == "max":
                torch.maximum(composed, layer, out=composed)
            else:
                composed += layer
        if self.overlay == "mean":
            shown = (place.base < len(self.base)).sum(1).short()[:, None, None, None]
            composed = ((composed + shown // 2) // shown).to(torch.uint8)
        return composed.expand(-1, self.channels, -1, -1).contiguous() if self._grey else composed

    def targets(self, indices: Tensor) -> Tensor:
        """Return the classes that the images at `indices` int64 [b] show: uint8 [b, classes] of 0 and 1."""
        label = self.place(indices).label
        shown = torch.zeros(len(label), len(self.classes) + 1, dtype=torch.uint8, device=self.device)
        return shown.scatter_(1, label, 1)[:, :-1]

    def parts(self, indices: Tensor) -> Parts:
        """Return what the images at `indices` int64 [b] are made of, uint8 and before they are resized."""
        place = self.place(indices)
        pixels = torch.stack([self._draw(place, m) for m in range(self.objects)], 1)
        absent = place.base == len(self.base)
        if self._grey:
            pixels = pixels.expand(-1, -1, self.channels, -1, -1)
        return Parts(pixels, place.label.masked_fill(absent, -1), place.base.masked_fill(absent, -1))

    def place(self, indices: Tensor) -> Place:
        """Return which objects the images at `indices` int64 [b] show, and where."""
        indices = sent(indices, self.device)
        random = self.random(indices, 1 + 3 * self.objects)
        alone = below(random[:, 0], self.single) == 0 if self.single else torch.zeros_like(indices, dtype=torch.bool)
        chosen, labels = [self.first(indices)], [self.base.labels[self.first(indices)]]
        for m in range(1, self.objects):
            other = self._other(random[:, 1 + 3 * m], torch.stack(labels, 1))
            chosen.append(other)
            labels.append(self.base.labels[other])
        base, label = torch.stack(chosen, 1), torch.stack(labels, 1)
        base[:, 1:].masked_fill_(alone[:, None], len(self.base))
        label[:, 1:].masked_fill_(alone[:, None], len(self.classes))
        moves = below(random[:, 1:].view(len(indices), self.objects, 3)[..., 1:], 2 * self.shift + 1) - self.shift
        return Place(base, label, moves + self._middle)

    def _other(self, random: Tensor, taken: Tensor) -> Tensor:
        """Return a base image of a class that is not among `taken` int64 [b, t], each equally likely: int64 [b]."""
        by_class, counts, starts = self._by_class
        taken = taken.sort(1).values
        rank = below(random, len(by_class) - counts[taken].sum(1))
        for label in taken.unbind(1):  # classes in the order in which their images lie in by_class
            rank = torch.where(rank >= starts[label], rank + counts[label], rank)
        return by_class[rank]

    def _draw(self, place: Place, m: int) -> Tensor:
        """Return object m of each image, alone and where it is: uint8 [b, c, side, side], of the base's channels."""
        top, left = (self._slack - place.corner[:, m]).unbind(1)
        return self._windows[place.base[:, m], :, top, left]

    @property
    def _grey(self) -> bool:
        return self.channels != self.base.shape[0]

    @cached_property
    def _slack(self) -> Tensor:
        """Return how many rows and columns a base image leaves free: int64 [2]."""
        return torch.tensor([self.side - length for length in self.base.shape[1:]], device=self.device)

    @cached_property
    def _middle(self) -> Tensor:
        return self._slack // 2

    @cached_property
    def _windows(self) -> Tensor:
        """Return the images that show a base image, or none, at every place: a view [n + 1, c, place, place, side,
        side].
        """
        down, right = self._slack.tolist()
        padded = F.pad(self.base.pixels, (right, right, down, down, 0, 0, 0, 1))
        return padded.unfold(2, self.side, 1).unfold(3, self.side, 1)

    @cached_property
    def _by_class(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the base images sorted by class [n]; how many each class has, and where it begins, both [classes]."""
        counts = torch.bincount(self.base.labels, minlength=len(self.classes))
        return self.base.labels.argsort(stable=True), counts, counts.cumsum(0) - counts
