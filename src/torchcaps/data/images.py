"""Images with labels: what a source of data has to offer, and the one that holds all its pixels in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, Self, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from torchcaps.data import prepare
from torchcaps.data.prepare import Fit, middle
from torchcaps.data.sending import sent

RESIZE_CHUNK = 2048  # images that are floats at one time


class Source(Protocol):
    """What batches are made from. Pixels and labels come on the device that `to` names, the CPU at first."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes; a label is an index into them."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (channels, height, width) of an image."""
        ...

    @property
    def shown(self) -> int | None:
        """Return how many labels each image has; None where images differ in it."""
        ...

    def __len__(self) -> int:
        """Return the number of images of an epoch."""
        ...

    def fetch(self, indices: Tensor) -> Tensor:
        """Return the images at `indices` int64 [b], on any device: uint8 [b, c, h, w]; int16 where values exceed
        255.
        """
        ...

    def targets(self, indices: Tensor) -> Tensor:
        """Return their labels: int64 [b], or where images have several, label sets uint8 [b, classes] of 0 and 1."""
        ...

    def stream(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Return `fetch` of each of the `batches` of indices in turn, prepared ahead where that saves time."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Return the same, on `device`."""
        ...


class Splits(NamedTuple):
    """What a reader returns. `validation` is None where the set gives none; it is then carved from `train`."""

    train: Source
    test: Source
    validation: Source | None = None


@runtime_checkable
class Stored(Source, Protocol):
    """Images of which there is a list: their labels can be read at once, and some of them be set aside."""

    @property
    def labels(self) -> Tensor:
        """Return all labels: int64 [n], or where images have several, label sets uint8 [n, classes] of 0 and 1."""
        ...

    def subset(self, indices: Tensor) -> Self:
        """Return the images at `indices` int64 [m], in this order."""
        ...


class Labelled:
    """What sources have in common whose labels stand in a tensor, on the device of the source."""

    labels: Tensor  # int64 [n], or label sets uint8 [n, classes] of 0 and 1
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shown(self) -> int | None:
        return shown(self.labels)

    def targets(self, indices: Tensor) -> Tensor:
        return self.labels[sent(indices, self.labels.device)]


class Held(Labelled):
    """What sources have in common whose pixels are in memory."""

    pixels: Tensor  # [n, c, h, w]

    @property
    def shape(self) -> tuple[int, int, int]:
        _, c, h, w = self.pixels.shape
        return c, h, w

    def fetch(self, indices: Tensor) -> Tensor:
        return self.pixels.index_select(0, sent(indices, self.pixels.device))

    def stream(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        return map(self.fetch, batches)


def one_ahead(fetch: Callable[[Tensor], Tensor], batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield `fetch` of each of `batches`; the next one is fetched by a thread while one is used."""
    return some_ahead(fetch, batches, 1, 1)


def some_ahead(
    fetch: Callable[[Tensor], Tensor], batches: Sequence[Tensor], threads: int, count: int
) -> Generator[Tensor, None, None]:
    """Yield `fetch` of each of `batches`, in their order; `count` next ones are fetched by threads while one is used.

    What has not begun when the generator is closed never does.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        ahead = deque(pool.submit(fetch, batch) for batch in batches[:count])
        for batch in batches[count:]:
            ahead.append(pool.submit(fetch, batch))
            yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, eq=False)
class Images(Held):
    """Images in memory.

    Raises:
        ValueError: for another type or shape of pixels or labels, and for a label without a class.
    """

    pixels: Tensor  # uint8 [n, c, h, w]
    labels: Tensor  # int64 [n], or label sets uint8 [n, classes] of 0 and 1
    classes: tuple[str, ...]
    paths: tuple[str, ...] = ()  # of the files that they were decoded from; empty: they were not

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4:
            found = f"{self.pixels.dtype} {list(self.pixels.shape)}"
            raise ValueError(f"pixels must be torch.uint8 [n, c, h, w], got {found}")
        check_labels(self.labels, self.classes, len(self.pixels))

    def subset(self, indices: Tensor) -> Images:
        paths = tuple(self.paths[index] for index in indices.tolist()) if self.paths else ()
        return Images(self.fetch(indices), self.labels[indices.to(self.labels.device)], self.classes, paths)

    def to(self, device: torch.device | str) -> Images:
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))

    def fit(self, size: tuple[int, int], how: Fit = "stretch", ground: Sequence[int] = (0,)) -> Images:
        """Return the same at `size` (height, width); see the function `fit`."""
        if self.shape[1:] == size:
            return self
        chunks = [fit(chunk, size, how, ground) for chunk in self.pixels.split(RESIZE_CHUNK)]
        return replace(self, pixels=torch.cat(chunks))

    def pad(self, side: int) -> Images:
        """Return the same in the middle of black squares of `side` pixels; of an odd rest the larger part is right
        and below.

        Raises:
            ValueError: when the images are larger.
        """
        height, width = self.shape[1:]
        if side < max(height, width):
            raise ValueError(f"data.pad is {side}: images of {height}x{width} pixels need {max(height, width)} or more")
        top, left = middle((height, width), (side, side))
        padded = F.pad(self.pixels, (left, side - width - left, top, side - height - top))
        return replace(self, pixels=padded)


def shown(labels: Tensor) -> int | None:
    """Return how many labels each image has: 1 of int64 [n]; of label sets [n, classes] None, since of a new image it
    is not known.
    """
    return 1 if labels.ndim == 1 else None


def cast_labels(labels: Tensor) -> Tensor:
    """Return labels [n] as int64, and label sets [n, classes] as uint8; ValueError where that would change one."""
    cast = labels.to(torch.uint8 if labels.ndim == 2 else torch.int64)
    if labels.ndim not in (1, 2) or not torch.equal(cast.to(labels.dtype), labels):
        raise ValueError(
            f"labels {labels.dtype} {list(labels.shape)}: they must be a whole number each, or a row of 0 and 1"
        )
    return cast


def check_labels(labels: Tensor, classes: tuple[str, ...], count: int) -> None:
    """Raise ValueError, naming what is wrong, unless there are `count` labels, or label sets, of `classes`."""
    found = f"{labels.dtype} {list(labels.shape)}"
    if labels.ndim == 2:
        if labels.dtype != torch.uint8 or labels.shape != (count, len(classes)):
            raise ValueError(f"label sets must be torch.uint8 [{count}, {len(classes)}], got {found}")
        if wrong := (~(labels.bool().any(1) & (labels <= 1).all(1))).nonzero().flatten().tolist():
            said = f"label set {wrong[0]} is {labels[wrong[0]].tolist()}"
            raise ValueError(f"{said}: it must be of 0 and 1, and at least one class be shown")
        return
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise ValueError(f"labels must be torch.int64 [{count}], one per image, got {found}")
    outside = labels[(labels < 0) | (labels >= len(classes))]
    if len(outside):
        raise ValueError(f"label {outside[0].item()} is outside the {len(classes)} classes 0 .. {len(classes) - 1}")


def fit(pixels: Tensor, size: tuple[int, int], how: Fit = "stretch", ground: Sequence[int] = (0,)) -> Tensor:
    """Return `pixels` uint8 [n, c, h, w] at `size` (height, width), as `prepare.fit` says, by `resize`: uint8 [n, c,
    *size].

    `ground` has the values of the channels that are padded with, or one for all.
    """
    colour = torch.tensor(ground, dtype=pixels.dtype, device=pixels.device)
    return prepare.fit(pixels, size, how, colour[:, None, None], resize)


def resize(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Return images at `size` (height, width), whatever their proportions: [n, c, h, w] -> [n, c, *size] of the same
    type.

    Bilinear, with antialiasing where it shrinks, rounded to the nearest integer. uint8, or int16 from 0 on.
    """
    if pixels.shape[-2:] == size:
        return pixels
    if not len(pixels):
        return pixels.new_empty(*pixels.shape[:2], *size)
    wide = F.interpolate(pixels.float(), size, mode="bilinear", antialias=True)
    return wide.round_().clamp_(0, 255 if pixels.dtype == torch.uint8 else None).to(pixels.dtype)
