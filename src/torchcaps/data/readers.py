"""Readers of the named sets and of Keras' .npz files. Each imports the library it needs when it is called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchcaps.config import DataConfig
from torchcaps.data.catalogue import CATALOGUE, absent, data_root
from torchcaps.data.images import Images, Source
from torchcaps.data.splits import stratified

DIGITS, DIGITS_TEST, DIGITS_SEED = Path(__file__).with_name("digits.npz"), 360, 0
KERAS_KEYS = ("x_train", "y_train", "x_test", "y_test")


class Splits(NamedTuple):
    """What a reader returns. `validation` is None where the set gives none; it is then carved from `train`."""

    train: Source
    test: Source
    validation: Source | None = None


Reader = Callable[[Path, DataConfig], Splits]  # of the data root, or of the path of `npz:PATH` and `folder:PATH`


def read_digits(root: Path, config: DataConfig) -> Splits:
    """The 1,797 digits of the test part of UCI's optical recognition set (1,437 train, 360 test), embedded here.

    `root` is not looked at. Source: Alpaydin and Kaynak 1998, doi 10.24432/C50P49, CC BY 4.0: each value counts the
    dark ones of 4x4 pixels. The values 0 .. 16 become 0 .. 255, halves rounded up. The test split is stratified by
    class, drawn by `splits.stratified` with seed 0: the same with every version of every library.
    """
    with np.load(DIGITS, allow_pickle=False) as embedded:
        values, target = (embedded[name].astype(np.int64) for name in ("images", "labels"))
    pixels = ((values * 255 + 8) // 16).astype(np.uint8)
    labels = torch.from_numpy(target)
    images = Images(channels_first(pixels), labels, CATALOGUE["digits"].classes)
    train, test = stratified(labels, DIGITS_TEST, DIGITS_SEED)
    return Splits(images.subset(train), images.subset(test))


def read_mnist(root: Path, config: DataConfig) -> Splits:
    """MNIST or Fashion-MNIST, as torchvision lays them out: root/MNIST/raw, root/FashionMNIST/raw."""
    from torchvision.datasets import MNIST, FashionMNIST

    dataset = {"mnist": MNIST, "fashion-mnist": FashionMNIST}[config.name]
    return _torchvision_splits(
        lambda train: dataset(str(root), train=train, download=config.download),
        lambda part: (part.data.unsqueeze(1), part.targets),
        root,
        config,
    )


def read_cifar(root: Path, config: DataConfig) -> Splits:
    """CIFAR-10 or CIFAR-100: root/cifar10.npz or root/cifar100.npz where there is one, else torchvision's files."""
    arrays = root / f"{config.name}.npz"
    if arrays.exists():
        return _npz_splits(arrays, CATALOGUE[config.name].classes)
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset = {"cifar10": CIFAR10, "cifar100": CIFAR100}[config.name]
    return _torchvision_splits(
        lambda train: dataset(str(root), train=train, download=config.download),
        lambda part: (channels_first(part.data), torch.tensor(part.targets)),
        root,
        config,
    )


def read_svhn(root: Path, config: DataConfig) -> Splits:
    """SVHN's cropped digits, without the extra images: root/SVHN/train_32x32.mat and test_32x32.mat (needs SciPy)."""
    from torchvision.datasets import SVHN

    folder = root / "SVHN"
    return _torchvision_splits(
        lambda train: SVHN(str(folder), split="train" if train else "test", download=config.download),
        lambda part: (torch.from_numpy(part.data.copy()), torch.from_numpy(part.labels)),
        folder,
        config,
    )


def read_npz(path: Path, config: DataConfig) -> Splits:
    """Arrays of the user's own under Keras' keys: x_train, y_train, x_test, y_test.

    Images NHW or NHWC of uint8, labels integers [n] or [n, 1]. The classes are 0 .. the largest label.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for missing keys, other types or shapes, and for objects: these would have to be unpickled, which
            can run code.
    """
    return _npz_splits(path, None)


def _torchvision_splits(
    load: Callable[[bool], object], parts: Callable[..., tuple[Tensor, Tensor]], place: Path, config: DataConfig
) -> Splits:
    """Both splits of one of torchvision's sets: `load(train)` makes it, `parts` takes pixels and labels out of it."""
    classes = CATALOGUE[config.name].classes
    try:
        train, test = (Images(*parts(load(training)), classes) for training in (True, False))
    except Exception as error:  # on bytes that are not what they should be, parsers raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        if absent(CATALOGUE[config.name], data_root(config.root)):
            if not config.download:
                raise missing(config.name, place) from error
            raise FileNotFoundError(f"data set {config.name!r} could not be fetched into {place}: {reason}") from error
        raise ValueError(
            f"data set {config.name!r} is damaged in {place} ({reason}): delete it there, then --data.download"
        ) from error
    return Splits(train, test)


def missing(name: str, place: Path) -> FileNotFoundError:
    """The error, in one line, for a set that is not in `place` or is damaged there."""
    page = CATALOGUE[name].page
    return FileNotFoundError(
        f"data set {name!r} is not in {place}, or is damaged there: "
        f"{f'get it from {page}' if page else 'fetch it with --data.download'}, "
        "or name the folder that holds it with --data.root or TORCHCAPS_DATA"
    )


def _npz_splits(path: Path, classes: tuple[str, ...] | None) -> Splits:
    arrays = _load_arrays(path)
    labels = {key: _labels(path, key, arrays[key]) for key in ("y_train", "y_test")}
    if classes is None:
        largest = max((int(part.max()) for part in labels.values() if len(part)), default=-1)
        if largest >= (count := sum(map(len, labels.values()))) > 0:
            raise ValueError(f"{path}: label {largest} of {count} images: the classes are 0 .. the largest label")
        classes = tuple(str(label) for label in range(largest + 1))
    splits = []
    for split in ("train", "test"):
        images, found = arrays[f"x_{split}"], labels[f"y_{split}"]
        if images.dtype.kind == "f":
            raise ValueError(f"{path}: {_describe_floats(images, f'x_{split}')}")
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise ValueError(f"{path}: x_{split} must be uint8, NHW or NHWC, got {images.dtype} {list(images.shape)}")
        try:
            splits.append(Images(channels_first(images), found, classes))
        except ValueError as error:
            raise ValueError(f"{path}, {split} split: {error}") from error
    if splits[0].shape != splits[1].shape:
        raise ValueError(f"{path}: train images are {splits[0].shape}, test images {splits[1].shape} (c, h, w)")
    return Splits(*splits)


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give the path of an .npz file as npz:PATH")
    try:
        with np.load(path, allow_pickle=False) as archive:
            absent = [key for key in KERAS_KEYS if key not in archive]
            arrays = {key: archive[key] for key in KERAS_KEYS if key in archive}
        if broken := [key for key, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{broken[0]} is no array")  # bytes, where a member does not begin as an array does
    except Exception as error:  # of zip, zlib, struct, ast or tokenize; too little memory, where a shape is nonsense
        raise ValueError(
            f"{path} is not an .npz file of plain arrays (objects are refused, since unpickling can run code): {error}"
        ) from error
    if absent:
        raise ValueError(f"{path} lacks {', '.join(absent)}: it must hold {', '.join(KERAS_KEYS)}")
    return arrays


def _labels(path: Path, key: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2) or array[:1].size > 1:
        raise ValueError(f"{path}: {key} must be integers [n] or [n, 1], got {array.dtype} {list(array.shape)}")
    return torch.from_numpy(array.reshape(-1).astype(np.int64))


def _describe_floats(images: np.ndarray, key: str) -> str:
    """Why floating images are not taken, and how to make them what is."""
    bad = np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(1))
    found = f", with NaN or infinite values, first in image {bad[0]}" if len(bad) else ""
    return (
        f"{key} must be uint8, NHW or NHWC, got {images.dtype} {list(images.shape)}{found}: "
        f"of values in [0, 1] make (255 * {key}).round().astype('uint8')"
    )


def channels_first(array: np.ndarray) -> Tensor:
    """uint8 [n, h, w] or [n, h, w, c] -> [n, c, h, w]."""
    if array.ndim == 3:
        return torch.from_numpy(np.ascontiguousarray(array)[:, None])
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))
