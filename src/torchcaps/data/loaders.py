"""The batches of a user's DataLoader in the place of our own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from torchcaps.data.batches import Batches
from torchcaps.data.drawing import generators_kept, seed_generators
from torchcaps.data.images import cast_labels
from torchcaps.data.sending import sent
from torchcaps.data.splits import DRAWS, mix


@dataclass(frozen=True, eq=False)
class Loaded:
    """What a DataLoader's images are, as a source says it; the loader alone makes batches of them."""

    loader: DataLoader[Any]
    count: int
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    shown: int | None
    device: torch.device | str = "cpu"

    def __len__(self) -> int:
        return self.count

    def fetch(self, indices: Tensor) -> Tensor:
        raise ValueError("the images of a DataLoader come in its own batches, and cannot be asked for one by one")

    def targets(self, indices: Tensor) -> Tensor:
        return self.fetch(indices)

    def stream(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        return map(self.fetch, batches)

    def to(self, device: torch.device | str) -> Self:
        return replace(self, device=device)

    def batches(self, seed: int) -> LoaderBatches:
        """Return the batches of the loader."""
        return LoaderBatches(self, batch_size_of(self.loader), seed=seed)


@dataclass(frozen=True, eq=False)
class LoaderBatches(Batches):
    """Batches as a DataLoader makes them. They cannot begin in the middle of an epoch.

    What it draws from the generators of torch (on the CPU), NumPy and Python depends on the seed, the epoch and the
    step, so that an epoch that is begun again is the same.
    """

    restarts: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self._source.loader)

    @property
    def _source(self) -> Loaded:
        assert isinstance(self.images, Loaded)
        return self.images

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images float32 [b, c, h, w], of uint8 in [0, 1], and labels int64 [b] or label sets uint8 [b,
        classes].
        """
        if start == len(self):  # a run that was stopped after the epoch's last step
            return
        assert start == 0, start
        for batch in self._drawn(epoch):
            images, labels = read_batch(batch)
            images = sent(images, self._source.device)
            yield self._prepare(images, labels, epoch, 0), sent(labels, self._source.device)

    def _drawn(self, epoch: int) -> Iterator[Any]:
        """Yield the loader's batches; its order, and what its workers draw by, are drawn with the first one."""
        end = object()
        with generators_kept():
            seed_generators(mix(DRAWS, self.seed, epoch))
            loader = iter(self._source.loader)
            batch = next(loader, end)
        for step in count(1):
            if batch is end:
                return
            yield batch
            with generators_kept():
                seed_generators(mix(DRAWS, self.seed, epoch, step))
                batch = next(loader, end)

    def parts(self, epoch: int, step: int) -> None:
        return None


def batch_size_of(loader: DataLoader[Any]) -> int:
    """Return how many images a batch of `loader` has, as it says; of one with batches of its own making, as many as the
    first has.
    """
    if loader.batch_size:
        return loader.batch_size
    with generators_kept():
        return len(read_batch(next(iter(loader)))[1])


def read_batch(batch: Any) -> tuple[Tensor, Tensor]:
    """Return the images [b, c, h, w], uint8 or float32, and the labels, int64 [b] or uint8 [b, classes], of a
    DataLoader's batch.

    Raises:
        ValueError: when it is not images and labels, and for labels that are not whole.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"a batch of the DataLoader is a {type(batch).__name__}; it must be images and labels")
    images, labels = (torch.as_tensor(each) for each in batch)
    images = images.unsqueeze(1) if images.ndim == 3 else images
    if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(f"a batch of the DataLoader has images {images.dtype} {list(images.shape)}, not [b, c, h, w]")
    return (images.float() if images.is_floating_point() else images), cast_labels(labels)
