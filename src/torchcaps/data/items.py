"""Images of a user's own tensors of floats, and of his Dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchcaps.data.drawing import generators_kept, seed_generators
from torchcaps.data.images import Held, Labelled, check_labels
from torchcaps.data.pictures import PALETTE_MODES
from torchcaps.data.splits import ITEMS, mix


@dataclass(frozen=True, eq=False)
class Floats(Held):
    """Images of any real values in memory, which are taken as they are."""

    pixels: Tensor  # float32 [n, c, h, w]
    labels: Tensor  # int64 [n], or label sets uint8 [n, classes] of 0 and 1
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        check_labels(self.labels, self.classes, len(self.pixels))

    def subset(self, indices: Tensor) -> Floats:
        return Floats(self.fetch(indices), self.targets(indices), self.classes)

    def to(self, device: torch.device | str) -> Floats:
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Items(Labelled):
    """The items (image, label) of a Dataset, which is asked for them whenever they are needed.

    Images are uint8, or float32 where the Dataset makes floats of them; all have one type and one shape. What an item
    draws from the generators of torch (on the CPU), NumPy and Python, as random transforms do, depends on its key
    alone; so items are fetched by the thread that trains, which uses the same generators.
    """

    dataset: Dataset[Any]
    rows: Tensor  # int64 [n], which items, on the CPU
    labels: Tensor  # int64 [n], or label sets uint8 [n, classes] of 0 and 1
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    dtype: torch.dtype  # of the images

    def __post_init__(self) -> None:
        check_labels(self.labels, self.classes, len(self.rows))

    def fetch(self, indices: Tensor) -> Tensor:
        """Return the images at `indices` int64 [b], uint8 or float32 [b, c, h, w], each drawn by its own number;
        ValueError, which names the item, for one of another shape or type.
        """
        return self._draw(indices, 0, 0, self.rows[indices.cpu()].tolist())

    def stream(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        return map(self.fetch, batches)

    def drawn(self, batches: Sequence[Tensor], starts: Sequence[int], seed: int, epoch: int) -> Iterator[Tensor]:
        """Yield the images of each of `batches`, each drawn by seed, epoch and its place in the epoch, of which
        `starts` has that of each batch's first image; raises as `fetch`.
        """
        for batch, start in zip(batches, starts, strict=True):
            yield self._draw(batch, seed, epoch, range(start, start + len(batch)))

    def _draw(self, indices: Tensor, seed: int, epoch: int, places: Iterable[int]) -> Tensor:
        images = []
        with generators_kept():
            for row, place in zip(self.rows[indices.cpu()].tolist(), places, strict=True):
                seed_generators(mix(ITEMS, seed, epoch, place))
                image = to_image(self.dataset[row][0])
                if tuple(image.shape) != self.shape or image.dtype != self.dtype:
                    found = f"item {row} of the Dataset has an image {image.dtype} {list(image.shape)}"
                    raise ValueError(f"{found}, and item 0 {self.dtype} {list(self.shape)}: all must be alike")
                images.append(image)
        return torch.stack(images or [torch.empty(self.shape, dtype=self.dtype)])[: len(images)].to(self.labels.device)

    def subset(self, indices: Tensor) -> Items:
        return replace(self, rows=self.rows[indices.cpu()], labels=self.labels[indices.to(self.labels.device)])

    def to(self, device: torch.device | str) -> Items:
        return replace(self, labels=self.labels.to(device))


def to_image(item: Any) -> Tensor:
    """Return the image of an item, uint8 or float32 [c, h, w]: of a tensor [c, h, w] or [h, w], of Pillow's, or an
    array [h, w] or [h, w, c].

    Raises:
        ValueError: for anything else, and for a picture of Pillow's that holds numbers of colours in a palette.
    """
    if (mode := getattr(item, "mode", None)) in PALETTE_MODES:
        raise ValueError(
            f"a picture of the Dataset has mode {mode}, numbers of colours in a palette: have the Dataset convert it, "
            'as image.convert("RGB") does'
        )
    if isinstance(item, Tensor):
        image = item if item.ndim == 3 else item.unsqueeze(0)
    else:
        array = np.array(item)
        if array.dtype.kind not in "biuf" or array.ndim not in (2, 3):
            found = f"a {type(item).__name__}, as an array {array.dtype} {list(array.shape)}"
            raise ValueError(f"an image of the Dataset is {found}; it must be a tensor, an array, or Pillow's")
        image = torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1)
    if image.ndim != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise ValueError(f"an image of the Dataset is {image.dtype} {list(image.shape)}, not uint8 or floats [c, h, w]")
    return image.float() if image.is_floating_point() else image
