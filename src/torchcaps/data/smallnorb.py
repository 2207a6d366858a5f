"""smallNORB (LeCun, Huang and Bottou 2004, https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/): toys from many sides.

Its six files, as they are named there, lie in root/smallNORB, plain or still packed (.gz). They are in the set's own
binary matrix format, all little-endian: a magic number that names the type of element, the number of dimensions n,
max(n, 3) sizes (those beyond n are 1), then the elements, the last dimension fastest.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from torchcaps.config import DataConfig
from torchcaps.data.catalogue import CATALOGUE
from torchcaps.data.images import Images, Splits
from torchcaps.data.notes import say
from torchcaps.data.readers import missing
from torchcaps.data.splits import SPLIT, mix, permutation, set_aside

TYPES = {
    0x1E3D4C51: np.dtype("<f4"),
    0x1E3D4C53: np.dtype("<f8"),
    0x1E3D4C54: np.dtype("<i4"),
    0x1E3D4C55: np.dtype("u1"),
    0x1E3D4C56: np.dtype("<i2"),
}
NAMES = {
    "train": "smallnorb-5x46789x9x18x6x2x96x96-training",
    "test": "smallnorb-5x01235x9x18x6x2x96x96-testing",
}
INSTANCES = {"train": (4, 6, 7, 8, 9), "test": (0, 1, 2, 3, 5)}
TOY, ELEVATION, AZIMUTH = range(3)  # columns of -info: 0 .. 9; 0 .. 8 for 30 .. 70 degrees; 0, 2 .. 34, tens of them

# Hinton, Sabour and Frosst 2018, section 5: the viewpoints that are trained on.
SEEN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "azimuth": lambda info: np.isin(info[:, AZIMUTH], (30, 32, 34, 0, 2, 4)),
    "elevation": lambda info: info[:, ELEVATION] < 3,
}


def read_smallnorb(root: Path, config: DataConfig) -> Splits:
    """Return all images, or those of the viewpoints that the name says; the two cameras of a pair are neighbours.

    The validation split has toys that training lacks, as the test split has, or whole pairs at least; see `hold_pairs`.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for a file that is damaged, is not of the format, or is not what its name says, and as `hold_pairs`.
    """
    _, _, view = config.name.partition("-")
    splits: dict[str, Images] = {}
    for split in ("train", "test"):
        pairs, labels, info = read_split(root / "smallNORB", split)
        if view:
            axis, _, kept = view.partition("-")
            seen = SEEN[axis](info)
            chosen = seen if split == "train" or kept == "seen" else ~seen
            pairs, labels, info = pairs[chosen], labels[chosen], info[chosen]
        if split == "train" and config.validation:
            held = hold_pairs(labels, info[:, TOY], config)
            splits["validation"] = _images(pairs[held], labels[held])
            pairs, labels = pairs[~held], labels[~held]
        splits[split] = _images(pairs, labels)
    return Splits(**splits)


def _images(pairs: np.ndarray, labels: np.ndarray) -> Images:
    pixels = torch.from_numpy(pairs.reshape(-1, 1, *pairs.shape[2:]))
    return Images(pixels, torch.from_numpy(labels.repeat(2).astype(np.int64)), CATALOGUE["smallnorb"].classes)


def hold_pairs(labels: np.ndarray, toys: np.ndarray, config: DataConfig) -> np.ndarray:
    """Return which pairs, of `labels` and `toys` [n], are the validation split: bool [n], `config.validation` of them.

    Where that share is a whole number of the toys of each class they are all pairs of toys that `config.split_seed`
    draws: to know a toy in other light, or by the other camera, is less than to know another, as the test split asks.
    Other shares are of pairs, stratified by class, which is said.

    Raises:
        ValueError: where that share is no pair, or all.
    """
    share, held = config.validation, round(config.validation * len(labels))
    if not 0 < held < len(labels):
        raise ValueError(f"data.validation {share} is {held} of {len(labels)} pairs that are trained on")
    there = {int(label): np.unique(toys[labels == label]) for label in np.unique(labels)}
    if all(round(share * len(each), 6) in range(1, len(each)) for each in there.values()):
        chosen = np.zeros(len(labels), bool)
        for label, each in there.items():
            drawn = permutation(len(each), mix(SPLIT, config.split_seed, 2, label))[: round(share * len(each))]
            chosen |= (labels == label) & np.isin(toys, each[drawn.numpy()])
        return chosen
    say(
        f"data.validation {share} is no whole number of the toys of each class of {config.name}: pairs of cameras are "
        "held out, of toys that are trained on from other sides; 0.2, 0.4, ... of all hold out toys"
    )
    _, taken = set_aside(torch.from_numpy(labels.astype(np.int64)), held, config.split_seed)
    return np.isin(np.arange(len(labels)), taken.numpy())


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the images uint8 [n, 2, h, w], labels int32 [n] and info int32 [n, 4] (toy, elevation, azimuth, light) of
    a split.

    Raises as `read_smallnorb`.
    """
    names = {part: f"{NAMES[split]}-{part}.mat" for part in ("dat", "cat", "info")}
    pairs, labels, info = (read_matrix(folder / name) for name in names.values())
    for part, array, dtype, shape in (
        ("dat", pairs, np.uint8, (len(pairs), 2, *pairs.shape[2:4])),
        ("cat", labels, np.int32, (len(pairs),)),
        ("info", info, np.int32, (len(pairs), 4)),
    ):
        if array.dtype != dtype or array.shape != shape:
            found = f"{array.dtype} {list(array.shape)}"
            raise ValueError(f"{folder / names[part]} holds {found}, not {np.dtype(dtype)} {list(shape)}")
    count = len(CATALOGUE["smallnorb"].classes)
    if len(wrong := np.flatnonzero((labels < 0) | (labels >= count))):
        found = f"label {labels[wrong[0]]} of pair {wrong[0]}"
        raise ValueError(f"{folder / names['cat']}: {found} is not in 0 .. {count - 1}")
    if len(wrong := np.flatnonzero(~np.isin(info[:, TOY], INSTANCES[split]))):
        found = f"pair {wrong[0]} is of toy {info[wrong[0], TOY]}"
        raise ValueError(f"{folder / names['info']}: {found}, but the {split} split has toys {INSTANCES[split]}")
    return pairs, labels, info


def read_matrix(path: Path) -> np.ndarray:
    """Return the array in a file of the binary matrix format, or in `path`.gz; raises as `read_smallnorb`."""
    packed = path.with_name(path.name + ".gz")
    if not path.is_file() and not packed.is_file():
        raise missing("smallnorb", path)
    try:
        content = path.read_bytes() if path.is_file() else gzip.decompress(packed.read_bytes())
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{packed} is damaged or cut short: {error}") from error
    header = np.frombuffer(content[: len(content) // 4 * 4][:8], "<i4")
    if len(header) < 2 or header[0] not in TYPES or not 1 <= header[1] <= 8:
        raise ValueError(f"{path} is not in smallNORB's binary matrix format: it begins with {content[:8].hex()}")
    dtype, dimensions = TYPES[int(header[0])], int(header[1])
    begin = 8 + 4 * max(dimensions, 3)
    shape = np.frombuffer(content[8:begin].ljust(begin - 8, b"\0"), "<i4")[:dimensions].tolist()
    if min(shape) < 0:
        raise ValueError(f"{path} is damaged: its header has the sizes {shape}, which cannot be negative")
    needed = begin + math.prod(shape) * dtype.itemsize
    if len(content) != needed:
        raise ValueError(f"{path} has {len(content):,} bytes, but its header ({dtype} {shape}) promises {needed:,}")
    return np.frombuffer(bytearray(content), dtype, offset=begin).reshape(shape)
