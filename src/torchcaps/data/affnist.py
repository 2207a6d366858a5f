"""affNIST (Tieleman 2013, https://www.cs.toronto.edu/~tijmen/affNIST/): MNIST's digits on 40x40 pixels, under small
affine transforms, in Matlab files.

Of each digit there are 32 versions, one in each of the files 1.mat .. 32.mat of root/affNIST/training_batches (50,000
digits), validation_batches (10,000) and test_batches (10,000), as 32x/transformed/*.zip unpack. A file holds a struct
affNISTdata; of its fields three are read: image uint8 [1600, n], a column an image, row by row; label_int [1, n]; and
label_one_of_n [10, n].
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from torchcaps.config import DataConfig
from torchcaps.data.catalogue import CATALOGUE
from torchcaps.data.images import Images, Splits
from torchcaps.data.readers import missing

SIDE = 40
VERSIONS = 32


def read_affnist(root: Path, config: DataConfig) -> Splits:
    """Return all three splits: 2.4 GB of training and validation images with all 32 versions, and 0.5 GB to test.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for `config.copies` out of range, and for files that are damaged or are not of this format.
    """
    train, validation, test = (read_batches(root, name, config.copies) for name in ("training", "validation", "test"))
    return Splits(train, test, validation)


def read_affnist_test(root: Path, config: DataConfig) -> Images:
    """Return the test split alone; raises as `read_affnist`."""
    return read_batches(root, "test", config.copies)


def read_batches(root: Path, split: str, copies: int) -> Images:
    """Return the images of files 1 .. `copies` of `split`, file by file."""
    if not 1 <= copies <= VERSIONS:
        raise ValueError(f"data.copies is {copies}: affNIST has 1 .. {VERSIONS} versions of each digit")
    folder = root / "affNIST" / f"{split}_batches"
    parts = [read_file(folder / f"{number}.mat") for number in range(1, copies + 1)]
    pixels, labels = (torch.cat(each) for each in zip(*parts, strict=True))
    return Images(pixels, labels, CATALOGUE["affnist"].classes)


def read_file(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pixels uint8 [n, 1, 40, 40] and the labels int64 [n] of one file."""
    from scipy.io import loadmat

    if not path.is_file():
        raise missing("affnist", path)
    try:
        fields = loadmat(path, variable_names=["affNISTdata"])["affNISTdata"][0, 0]
        image, label, one_of_n = (fields[name] for name in ("image", "label_int", "label_one_of_n"))
    except Exception as error:  # SciPy raises errors of a dozen kinds for damaged files
        raise ValueError(f"{path} is damaged, or is no file of affNIST: {error or type(error).__name__}") from error
    count = image.shape[-1]
    shapes = {"image": (image, SIDE * SIDE), "label_int": (label, 1), "label_one_of_n": (one_of_n, 10)}
    for name, (array, rows) in shapes.items():
        if array.shape != (rows, count):
            raise ValueError(f"{path}: {name} is {list(array.shape)}, but must be {[rows, count]} for {count} images")
    if image.dtype != np.uint8:
        raise ValueError(f"{path}: image is of {image.dtype}, but must be of uint8")
    labels = label[0].astype(np.int64)
    if len(wrong := np.flatnonzero(labels != one_of_n.argmax(0))):
        said = f"label_int says {labels[wrong[0]]}, label_one_of_n {one_of_n[:, wrong[0]].argmax()}"
        raise ValueError(f"{path}: the labels of {len(wrong)} images disagree; of image {wrong[0]} {said}")
    pixels = np.ascontiguousarray(image.T).reshape(count, 1, SIDE, SIDE)
    return torch.from_numpy(pixels), torch.from_numpy(labels)
