"""Readers of the named sets. Each imports the library it needs when it is called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchcaps.config import DataConfig
from torchcaps.data.arrays import channels_first, npz_splits
from torchcaps.data.catalogue import CATALOGUE, absent, data_root
from torchcaps.data.images import Images, Splits
from torchcaps.data.splits import stratified

DIGITS, DIGITS_TEST, DIGITS_SEED = Path(__file__).with_name("digits.npz"), 360, 0


Reader = Callable[[Path, DataConfig], Splits]  # of the data root, or of the path in the name


def read_digits(root: Path, config: DataConfig) -> Splits:
    """Return the 1,797 digits of the test part of UCI's optical recognition set (1,437 train, 360 test), embedded here.

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
    """Return the splits of MNIST or Fashion-MNIST, laid out by torchvision: root/MNIST/raw, root/FashionMNIST/raw."""
    from torchvision.datasets import MNIST, FashionMNIST

    dataset = {"mnist": MNIST, "fashion-mnist": FashionMNIST}[config.name]
    return _torchvision_splits(
        lambda train: dataset(str(root), train=train, download=config.download),
        lambda part: (part.data.unsqueeze(1), part.targets),
        root,
        config,
    )


def read_cifar(root: Path, config: DataConfig) -> Splits:
    """Return the splits of CIFAR-10 or CIFAR-100: root/cifar10.npz or root/cifar100.npz where there is one, else
    torchvision's files.
    """
    arrays = root / f"{config.name}.npz"
    if arrays.exists():
        return npz_splits(arrays, CATALOGUE[config.name].classes)
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset = {"cifar10": CIFAR10, "cifar100": CIFAR100}[config.name]
    return _torchvision_splits(
        lambda train: dataset(str(root), train=train, download=config.download),
        lambda part: (channels_first(part.data), torch.tensor(part.targets)),
        root,
        config,
    )


def read_svhn(root: Path, config: DataConfig) -> Splits:
    """Return the splits of SVHN's cropped digits, without the extra images: root/SVHN/train_32x32.mat and
    test_32x32.mat (needs SciPy).
    """
    from torchvision.datasets import SVHN

    folder = root / "SVHN"
    return _torchvision_splits(
        lambda train: SVHN(str(folder), split="train" if train else "test", download=config.download),
        lambda part: (torch.from_numpy(part.data.copy()), torch.from_numpy(part.labels)),
        folder,
        config,
    )


def _torchvision_splits(
    load: Callable[[bool], object], parts: Callable[..., tuple[Tensor, Tensor]], place: Path, config: DataConfig
) -> Splits:
    """Return both splits of one of torchvision's sets: `load(train)` makes it, `parts` takes pixels and labels out
    of it.
    """
    classes = CATALOGUE[config.name].classes
    try:
        train, test = (Images(*parts(load(training)), classes) for training in (True, False))
    except ModuleNotFoundError:  # which torchvision imports when it reads, such as SciPy: the set is as it should be
        raise
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
    """Return the error, in one line, for a set that is not in `place` or is damaged there."""
    page = CATALOGUE[name].page
    return FileNotFoundError(
        f"data set {name!r} is not in {place}, or is damaged there: "
        f"{f'get it from {page}' if page else 'fetch it with --data.download'}, "
        "or name the folder that holds it with --data.root or TORCHCAPS_DATA"
    )
