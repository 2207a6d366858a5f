"""Orders and splits that depend on their seed alone.

They are drawn from the raw stream of PCG64 behind a `SeedSequence`: numpy keeps both fixed across versions (NEP 19),
which it does not promise of `Generator.permutation`, nor torch of `randperm`.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from torchcaps.config import DataConfig
from torchcaps.data.notes import say

if TYPE_CHECKING:
    from torchcaps.data.images import Stored

# What a seed is used for: the uses of one seed are independent.
ORDER, DRAWS, SPLIT, COMPOSE, FLIPS, BALANCE, ITEMS = range(7)
RARE = 10  # images that have the same label set, below which they are split together with others


def mix(purpose: int, *key: int) -> np.random.SeedSequence:
    """Return a seed for one `purpose` and `key`, such as (seed, epoch, step); nearby keys give unrelated streams.

    The purpose is a spawn key: a sequence of integers alone would take (seed, epoch) and (seed, epoch, 0) for the same.

    Raises:
        ValueError: for a negative number in `key`.
    """
    if min(key) < 0:
        raise ValueError(f"seeds must not be negative, got {min(key)}")
    return np.random.SeedSequence(key, spawn_key=(purpose,))


def permutation(count: int, seed: np.random.SeedSequence) -> Tensor:
    """Return the numbers 0 .. count - 1 in a random order: int64 [count]."""
    return torch.from_numpy(np.random.PCG64(seed).random_raw(count).argsort(kind="stable"))


def balanced(labels: Tensor, seed: int, epoch: int) -> Tensor:
    """Return the indices of as many images as `labels` int64 [n] has, in an order that shows each class as often as any
    other: int64 [n].

    Of any C images that follow each other from a multiple of C on, one is of each of the C classes that have images. An
    image comes again once all of its class have been.
    """
    there, classes = labels.cpu().unique(return_inverse=True)
    rounds = -(-len(labels) // len(there))
    rows = []
    for label in range(len(there)):
        images = (classes == label).nonzero()[:, 0]
        passes = range(-(-rounds // len(images)))
        orders = [permutation(len(images), mix(BALANCE, seed, epoch, label, each)) for each in passes]
        rows.append(images[torch.cat(orders)][:rounds])
    drawn = np.random.PCG64(mix(BALANCE, seed, epoch)).random_raw(rounds * len(there)).reshape(rounds, -1)
    turns = torch.from_numpy(drawn.argsort(1, kind="stable"))  # of the classes in each round
    return torch.stack(rows, 1).gather(1, turns).flatten()[: len(labels)]


def coins(indices: Tensor, seed: int) -> Tensor:
    """Return a coin thrown for each image, the same whenever it is asked for: bool [b] for `indices` int64 [b], on
    the CPU.

    It is the top bit of Steele et al. 2014's SplitMix64 of the index, begun at a number drawn from the seed.
    """
    start = mix(FLIPS, seed).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):
        state = start + (indices.cpu().numpy().astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return torch.from_numpy((state >> np.uint64(63)).astype(bool))


def stratified(labels: Tensor, held: int, seed: int, spare: bool = False) -> tuple[Tensor, Tensor]:
    """Return the indices of the images kept and of the `held` images set aside, both ascending, class by class in
    proportion.

    Each class gives the whole part of its quota; the rest comes from the classes with the largest remainders, one image
    each, the lower class first among equals. With `spare` no class gives its last image, as long as others have enough.
    `labels` int64 [n].
    """
    assert 0 <= held <= len(labels), held
    classes = labels.cpu()
    counts = torch.bincount(classes)
    quotas, remainders = counts * held // len(classes), counts * held % len(classes)
    order = remainders.argsort(descending=True, stable=True)
    quotas[order[: held - int(quotas.sum())]] += 1
    room = (counts - 1).clamp_min(0)
    if spare and held <= int(room.sum()):
        quotas = torch.minimum(quotas, room)
        while missing := held - int(quotas.sum()):
            quotas[order[(quotas < room)[order]][:missing]] += 1
    drawn = permutation(len(classes), mix(SPLIT, seed))
    taken = rank_in_class(classes[drawn]) < quotas[classes[drawn]]  # random inside a class
    return drawn[~taken].sort().values, drawn[taken].sort().values


def set_aside(labels: Tensor, held: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the images kept for training and of the `held` images set aside, both ascending:
    `stratified` by labels int64 [n], or by label sets uint8 [n, classes].

    No class gives its last image, as long as others have enough; where one has to, that is said.
    """
    labels = labels.cpu()
    kept, taken = stratified(strata(labels), held, seed, spare=True)
    if labels.ndim == 2:
        kept, taken = _give_back(labels, kept, taken)
    if lost := len(_shown(labels)) - len(_shown(labels[kept])):
        say(f"of {len(labels):,} images {held:,} are set aside, so that {lost:,} class(es) have none left to train on")
    return kept, taken


def _shown(labels: Tensor) -> Tensor:
    """Return the classes that images with these labels int64 [n], or label sets [n, classes], show."""
    return labels.unique() if labels.ndim == 1 else labels.any(0).nonzero().flatten()


def _give_back(sets: Tensor, kept: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
    """Return `kept` and `taken` with each class among the kept: where it lacks, the first image of it that is taken is
    exchanged for the first one kept that is no class's last. `sets` is uint8 [n, classes].
    """
    for label in range(sets.shape[1]):
        holders = taken[sets[taken, label].bool()]
        if sets[kept, label].any() or not len(holders):
            continue
        back = holders[:1]
        counts = sets[torch.cat([kept, back])].sum(0, dtype=torch.int64)
        spare = kept[~((counts < 2) & sets[kept].bool()).any(1)][:1]
        if len(spare):
            kept = torch.cat([kept[kept != spare], back])
            taken = torch.cat([taken[taken != back], spare])
    return kept.sort().values, taken.sort().values


def equal_share(labels: Tensor, share: float, seed: int) -> Tensor:
    """Return the indices of a `share` of the images of `labels` int64 [n], ascending: as many of each class, or one
    fewer.

    A class that has fewer gives all of them, which is said, and the others as many more, each alike. In each class they
    are the first of an order that the seed draws: those of a smaller share are among them.

    Raises:
        ValueError: where that is not one image of each class.
    """
    classes = labels.cpu()
    counts = torch.bincount(classes)
    there = int((counts > 0).sum())
    total = round(share * len(classes))
    if total < there:
        raise ValueError(f"data.fraction {share} is {total} of {len(classes)} images, fewer than the {there} classes")
    levels = range(int(counts.max()) + 1)  # images of each class that has so many
    each = bisect_right(levels, total, key=lambda level: int(counts.clamp(max=level).sum())) - 1
    quota = counts.clamp(max=each)
    quota[(counts > each).nonzero().flatten()[: total - int(quota.sum())]] += 1
    if small := int(((counts > 0) & (counts < each)).sum()):
        said = f"{small} of {there} classes have fewer than {each:,} and give all, the others {each:,} or one more"
        say(f"data.fraction {share} is {total:,} images: {said}")

    order = permutation(len(classes), mix(SPLIT, seed, 1))
    return order[rank_in_class(classes[order]) < quota[classes[order]]].sort().values  # random inside a class


def rank_in_class(labels: Tensor) -> Tensor:
    """Return how many images before each are of its class, int64 [n], of labels int64 [n] from 0 on."""
    order, counts = labels.argsort(stable=True), labels.bincount()
    rank = torch.empty_like(labels)
    rank[order] = torch.arange(len(labels), device=labels.device) - (counts.cumsum(0) - counts)[labels[order]]
    return rank


def in_turn(labels: Tensor, count: int) -> Tensor:
    """Return the first `count` places, int64, of images with these labels: one of each class in turn.

    `labels` is int64 [n], or label sets [n, classes] of 0 and 1, of which the first `count` are taken as they come.
    """
    if labels.ndim > 1 or not len(labels):
        return torch.arange(min(count, len(labels)))
    return (rank_in_class(labels) * (int(labels.max()) + 1) + labels).argsort(stable=True)[:count]


def strata(labels: Tensor) -> Tensor:
    """Return what images are split by: their labels int64 [n], or a number for each label set of [n, classes]: int64
    [n].

    The sets that fewer than ten images have are one: each by itself could not be split in proportion.
    """
    if labels.ndim == 1:
        return labels
    _, number, counts = labels.cpu().unique(dim=0, return_inverse=True, return_counts=True)
    return torch.where(counts[number] < RARE, 0, number + 1)


def hold_out(train: Stored, config: DataConfig) -> tuple[Stored, Stored]:
    """Return `train` without its validation split, and that split: `config.validation` of it, by `config.split_seed`.

    Raises:
        ValueError: where that share is no image, or all.
    """
    held = round(config.validation * len(train))
    if config.validation and not 0 < held < len(train):
        raise ValueError(f"data.validation {config.validation} is {held} of {len(train)} training images")
    kept, taken = set_aside(train.labels, held, config.split_seed)
    return train.subset(kept), train.subset(taken)
