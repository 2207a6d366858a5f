"""The user's own arrays, in an .npz file under Keras' keys: x_train, y_train, x_test, y_test, and perhaps x_val, y_val.

Numbers become uint8 0 .. 255, and what was done is said. Shapes and ranges that could be read in two ways are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from torchcaps.config import DataConfig
from torchcaps.data.images import Images, Splits
from torchcaps.data.notes import say, some
from torchcaps.data.tree import SPLITS

KERAS_KEYS = ("x_train", "y_train", "x_test", "y_test")
MOST_CHANNELS = 4  # of what is taken for channels without having been declared
CHUNK = 4096  # images that are converted at one time

Order = Literal["auto", "nhwc", "nchw"]
Arrays = dict[str, np.ndarray]


def read_npz(path: Path, config: DataConfig) -> Splits:
    """Return the arrays in the file `path`.

    Images are NHW, NHWC or NCHW (`config.order`), of uint8; of uint16, whose upper eight bits are kept; of bool, as
    black and white; or of other integers or floats, all in [0, 255] or, of floats, all in [0, 1]. Labels are integers
    or strings, [n] or [n, 1]; the classes are the values that the training labels have, and named so.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for missing keys, other types, ranges or shapes, types of labels that differ between splits, a
            shape that may be NHWC or NCHW and is not declared, a label that no training image has, and for objects:
            these would have to be unpickled, which can run code.
    """
    return npz_splits(path, None, config.order)


def npz_splits(path: Path, classes: tuple[str, ...] | None, order: Order = "auto") -> Splits:
    """Return what `read_npz` does; labels are whole numbers that index `classes`, where these are given."""
    arrays = _load_arrays(path)
    splits = {"train": "train", "test": "test"}
    if given := next((name for name in SPLITS["validation"] if f"x_{name}" in arrays), None):
        splits["validation"] = given
        if f"y_{given}" not in arrays:
            raise ValueError(f"{path} lacks y_{given}: it has x_{given}")
    used = {f"{letter}_{name}" for letter in "xy" for name in splits.values()}
    if left := sorted(set(arrays) - used):
        say(f"left out {len(left)} array(s) of {path} that are neither images nor labels of a split: {some(left)}")
    labels = {split: _labels(path, f"y_{name}", arrays[f"y_{name}"]) for split, name in splits.items()}
    encoded = _encode(path, labels, classes)
    pixels = _to_bytes(path, {f"x_{name}": arrays.pop(f"x_{name}") for name in splits.values()})
    found = {}
    for split, name in splits.items():
        images = _channels_first(path, f"x_{name}", pixels[f"x_{name}"], order)
        try:
            found[split] = Images(images, *encoded[split])
        except ValueError as error:
            raise ValueError(f"{path}, {split} split: {error}") from error
        if found[split].shape != (shape := found["train"].shape):
            raise ValueError(f"{path}: train images are {shape}, {split} images {found[split].shape} (c, h, w)")
    return Splits(**found)


def channels_first(array: np.ndarray) -> Tensor:
    """Map uint8 [n, h, w] or [n, h, w, c] -> [n, c, h, w]."""
    if array.ndim == 3:
        return torch.from_numpy(np.ascontiguousarray(array)[:, None])
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def _load_arrays(path: Path) -> Arrays:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give the path of an .npz file as npz:PATH")
    try:
        with np.load(path, allow_pickle=False) as archive:
            absent = [key for key in KERAS_KEYS if key not in archive]
            arrays = {key: archive[key] for key in archive}
        if broken := [key for key, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{broken[0]} is no array")  # bytes, where a member does not begin as an array does
    except Exception as error:  # of zip, zlib, struct, ast or tokenize; too little memory, where a shape is nonsense
        raise ValueError(
            f"{path} is not an .npz file of plain arrays (objects are refused, since unpickling can run code): {error}"
        ) from error
    if absent:
        raise ValueError(f"{path} lacks {', '.join(absent)}: it must hold {', '.join(KERAS_KEYS)}")
    return arrays


def _labels(path: Path, key: str, array: np.ndarray) -> np.ndarray:
    """Return the labels [n], of integers or strings."""
    if array.dtype.kind not in "iubUS" or array.ndim not in (1, 2) or array[:1].size > 1:
        raise ValueError(
            f"{path}: {key} must be integers or strings [n] or [n, 1], got {array.dtype} {list(array.shape)}"
        )
    return array.reshape(-1)


def _encode(path: Path, labels: Arrays, classes: tuple[str, ...] | None) -> dict[str, tuple[Tensor, tuple[str, ...]]]:
    """Return the labels of each split as indices int64 [n] into the classes, and these."""
    kinds = {split: {"U": "strings", "S": "bytes"}.get(found.dtype.kind, "numbers") for split, found in labels.items()}
    if len(set(kinds.values())) > 1:
        said = ", ".join(f"those of {split} are {kind}" for split, kind in kinds.items())
        raise ValueError(f"{path}: labels of all splits must be of one type, but {said}")
    if classes is not None:
        for split, found in labels.items():
            if found.dtype.kind not in "iu":
                last = len(classes) - 1
                raise ValueError(f"{path}: {split} labels must be whole numbers, 0 .. {last}, got {found.dtype}")
        return {split: (torch.from_numpy(found.astype(np.int64)), classes) for split, found in labels.items()}
    values = np.unique(labels["train"])
    names = tuple(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values)
    if values.dtype.kind in "iu" and not np.array_equal(values, np.arange(len(values))):
        say(f"the training labels of {path} are {some(names)}: these are the names of its {len(names)} classes")
    encoded = {}
    for split, found in labels.items():
        if not np.isin(found, values).all():
            strange = found[~np.isin(found, values)][0]
            raise ValueError(f"{path}, {split} split: no training image has the label {str(strange)!r}")
        encoded[split] = torch.from_numpy(np.searchsorted(values, found).astype(np.int64)), names
    return encoded


def _to_bytes(path: Path, arrays: Arrays) -> Arrays:
    """Return the images of all splits as uint8, by one rule for all.

    Raises:
        ValueError: for other types or ranges, and for types that differ.
    """
    kinds = {key: str(array.dtype) for key, array in arrays.items()}
    for key, array in arrays.items():
        if array.dtype.kind not in "uibf":
            raise ValueError(f"{path}: {key} must be uint8, or other numbers from 0 to 255 or to 1, got {array.dtype}")
        if array.dtype.kind == "f" and len(bad := np.flatnonzero(~_finite(array))):
            raise ValueError(f"{path}: {key} has NaN or infinite values, first in image {bad[0]}")
    if len(set(kinds.values())) > 1:
        said = ", ".join(f"{key} is {kind}" for key, kind in kinds.items())
        raise ValueError(f"{path}: {said}: all images must be of one type")
    kind = next(iter(arrays.values())).dtype
    filled = [array for array in arrays.values() if array.size]
    low, high = min((each.min() for each in filled), default=0), max((each.max() for each in filled), default=0)
    if kind == np.uint8:
        if high == 1:
            say(f"no pixel of {path} is brighter than 1 of 255: images of 0 and 1 are bool, or floats")
        return arrays
    if kind == np.bool_:
        say(f"images of {path} are bool: False is black (0), True is white (255)")
        return {key: array.astype(np.uint8) * np.uint8(255) for key, array in arrays.items()}
    if kind == np.uint16:
        say(f"images of {path} have 16 bits, of which the upper eight are kept")
        return {key: (array >> 8).astype(np.uint8) for key, array in arrays.items()}
    if low < 0 or high > 255:
        raise ValueError(
            f"{path}: images of {kind} are in [{low:g}, {high:g}], and which values are black and white is not known: "
            "give uint8, or floats in [0, 1] or [0, 255]"
        )
    if kind.kind != "f":
        say(f"images of {path} are {kind}, in [{low}, {high}]: taken for 8 bits, 255 being white")
        return {key: array.astype(np.uint8) for key, array in arrays.items()}
    scale = 255 if high <= 1 else 1
    said = "multiplied by 255 and rounded" if scale == 255 else "rounded; 255 is white"
    say(f"images of {path} are {kind}, in [{low:g}, {high:g}]: {said}")
    return {key: _round(array, scale) for key, array in arrays.items()}


def _finite(array: np.ndarray) -> np.ndarray:
    """Return which images have no NaN or infinite value: bool [n]."""
    return np.asarray(np.isfinite(array).reshape(len(array), -1).all(1))


def _round(array: np.ndarray, scale: int) -> np.ndarray:
    rounded = np.empty(array.shape, np.uint8)
    for begin in range(0, len(array), CHUNK):
        rounded[begin : begin + CHUNK] = np.rint(array[begin : begin + CHUNK].astype(np.float64) * scale)
    return rounded


def _channels_first(path: Path, key: str, array: np.ndarray, order: Order) -> Tensor:
    """Map images as `order` says -> uint8 [n, c, h, w].

    Raises:
        ValueError: for other than three or four axes, and where `order` is "auto" and may be nhwc or nchw.
    """
    if array.ndim not in (3, 4):
        raise ValueError(f"{path}: {key} must be NHW, NHWC or NCHW, got {array.dtype} {list(array.shape)}")
    if array.ndim == 4 and (order == "nchw" or (order == "auto" and not _is_channels_last(array.shape))):
        _, a, b, c = array.shape
        if order == "auto":
            raise ValueError(
                f"{path}: {key} {list(array.shape)} is {b}x{a} pixels of {c} channels (nhwc), or {c}x{b} pixels of {a} "
                "channels (nchw): say which with --data.order"
            )
        return torch.from_numpy(np.ascontiguousarray(array))
    return channels_first(array)


def _is_channels_last(shape: tuple[int, ...]) -> bool:
    """Return whether [n, a, b, c] can only be c channels of a x b pixels: of few channels, and a is no such number,
    or the pixels are a square, which they would not be otherwise.
    """
    _, a, b, c = shape
    return c <= MOST_CHANNELS and (a > MOST_CHANNELS or (a == b and b != c))
