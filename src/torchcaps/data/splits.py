"""Orders and splits that depend on their seed alone.

They are drawn from the raw stream of PCG64 behind a `SeedSequence`: numpy keeps both fixed across versions (NEP 19),
which it does not promise of `Generator.permutation`, nor torch of `randperm`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from torchcaps.config import DataConfig

if TYPE_CHECKING:
    from torchcaps.data.images import Stored

ORDER, DRAWS, SPLIT, COMPOSE = range(4)  # what a seed is used for: the uses of one seed are independent


def mix(purpose: int, *key: int) -> np.random.SeedSequence:
    """A seed for one `purpose` and `key`, such as (seed, epoch, step); nearby keys give unrelated streams.

    The purpose is a spawn key: a sequence of integers alone would take (seed, epoch) and (seed, epoch, 0) for the same.

    Raises:
        ValueError: for a negative number in `key`.
    """
    if min(key) < 0:
        raise ValueError(f"seeds must not be negative, got {min(key)}")
    return np.random.SeedSequence(key, spawn_key=(purpose,))


def permutation(count: int, seed: np.random.SeedSequence) -> Tensor:
    """The numbers 0 .. count - 1 in a random order: int64 [count]."""
    return torch.from_numpy(np.random.PCG64(seed).random_raw(count).argsort(kind="stable"))


def stratified(labels: Tensor, held: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the images kept and of the `held` images set aside, both ascending, class by class in proportion.

    Each class gives the whole part of its quota; the rest comes from the classes with the largest remainders, one image
    each, the lower class first among equals. `labels` int64 [n].
    """
    assert 0 <= held <= len(labels), held
    classes = labels.cpu()
    counts = torch.bincount(classes)
    quotas, remainders = counts * held // len(classes), counts * held % len(classes)
    quotas[remainders.argsort(descending=True, stable=True)[: held - int(quotas.sum())]] += 1

    order = permutation(len(classes), mix(SPLIT, seed))
    by_class = order[classes[order].argsort(stable=True)]  # random inside a class
    rank = torch.arange(len(classes)) - (counts.cumsum(0) - counts)[classes[by_class]]
    taken = rank < quotas[classes[by_class]]
    return by_class[~taken].sort().values, by_class[taken].sort().values


def hold_out(train: Stored, config: DataConfig) -> tuple[Stored, Stored]:
    """`train` without its validation split, and that split: `config.validation` of it, by `config.split_seed`.

    Raises:
        ValueError: where that share is no image, or all.
    """
    held = round(config.validation * len(train))
    if config.validation and not 0 < held < len(train):
        raise ValueError(f"data.validation {config.validation} is {held} of {len(train)} training images")
    kept, taken = stratified(train.labels, held, config.split_seed)
    return train.subset(kept), train.subset(taken)
