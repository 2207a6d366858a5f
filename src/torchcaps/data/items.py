"""Images of a user's own tensors of floats, and of his Dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchcaps.data.images import Held, Labelled, check_labels, one_ahead


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

    Images are uint8, or float32 where the Dataset makes floats of them; all have one shape.
    """

    dataset: Dataset[Any]
    rows: Tensor  # int64 [n], which items, on the CPU
    labels: Tensor  # int64 [n], or label sets uint8 [n, classes] of 0 and 1
    classes: tuple[str, ...]
    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        check_labels(self.labels, self.classes, len(self.rows))

    def fetch(self, indices: Tensor) -> Tensor:
        """Return the images at `indices` int64 [b], uint8 or float32 [b, c, h, w]; ValueError, which names the item,
        for one of another shape.
        """
        images = []
        for row in self.rows[indices.cpu()].tolist():
            image = to_image(self.dataset[row][0])
            if tuple(image.shape) != self.shape:
                raise ValueError(f"item {row} of the Dataset has an image {list(image.shape)}, not {list(self.shape)}")
            images.append(image)
        return torch.stack(images).to(self.labels.device) if images else torch.empty(0, *self.shape)

    def stream(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield `fetch` of each of `batches`, one batch ahead."""
        return one_ahead(self.fetch, batches)

    def subset(self, indices: Tensor) -> Items:
        return replace(self, rows=self.rows[indices.cpu()], labels=self.labels[indices.to(self.labels.device)])

    def to(self, device: torch.device | str) -> Items:
        return replace(self, labels=self.labels.to(device))


def to_image(item: Any) -> Tensor:
    """Return the image of an item, uint8 or float32 [c, h, w]: of a tensor [c, h, w] or [h, w], of Pillow's, or an
    array [h, w] or [h, w, c].

    Raises:
        ValueError: for anything else.
    """
    if isinstance(item, Tensor):
        image = item if item.ndim == 3 else item.unsqueeze(0)
    else:
        array = np.array(item)
        image = torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1)
    if image.ndim != 3 or not (image.dtype == torch.uint8 or image.is_floating_point()):
        raise ValueError(f"an image of the Dataset is {image.dtype} {list(image.shape)}, not uint8 or floats [c, h, w]")
    return image.float() if image.is_floating_point() else image
