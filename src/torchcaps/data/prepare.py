"""From pixels to what a model takes: the steps that measuring a split and answering for a new picture share.

Arrays are numpy's or torch's: the same lines serve both, and torch is not imported here, so that an exported network is
used without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from torchcaps.forms import InputForm

Fit = Literal["stretch", "crop", "pad"]
A = TypeVar("A", bound=Any)  # an array of numpy or torch


def middle(size: Sequence[int], room: Sequence[int]) -> tuple[int, int]:
    """Return where an image of `size` (height, width) begins in the middle of `room`; of an odd rest the larger part
    is right and below.
    """
    return (room[0] - size[0]) // 2, (room[1] - size[1]) // 2


def largest(room: Sequence[int], like: Sequence[int]) -> tuple[int, int]:
    """Return the largest size (height, width) inside `room` that has the proportions of `like`, in whole pixels."""
    scale = min(room[0] / like[0], room[1] / like[1])
    return min(room[0], max(1, round(like[0] * scale))), min(room[1], max(1, round(like[1] * scale)))


def fit(pixels: A, size: tuple[int, int], how: Fit, ground: A, resize: Callable[[A, tuple[int, int]], A]) -> A:
    """Return `pixels` uint8 [..., c, h, w] brought to `size` (height, width) by `resize`: uint8 [..., c, *size].

    Args:
        pixels: the images.
        size: in pixels.
        how: stretch (proportions change), crop (the largest middle part of the wanted proportions), or pad (the whole
            image in the middle of `ground`; of an odd rest the larger part is right and below).
        ground: uint8 [c, 1, 1], or what broadcasts to it.
        resize: brings images to a size whatever their proportions.

    Raises:
        ValueError: for another `how`.
    """
    height, width = pixels.shape[-2:]
    match how:
        case "stretch":
            return resize(pixels, size)
        case "crop":
            part = largest((height, width), size)
            top, left = middle(part, (height, width))
            return resize(pixels[..., top : top + part[0], left : left + part[1]], size)
        case "pad":
            inner = largest(size, (height, width))
            top, left = middle(inner, size)
            padded = (pixels[..., :1, :1] * 0 + ground)[..., [0] * size[0], :][..., [0] * size[1]]
            padded[..., top : top + inner[0], left : left + inner[1]] = resize(pixels, inner)
            return padded
    raise ValueError(f"data.fit is {how!r}: it must be stretch, crop or pad")


def crops(images: A, side: int, views: int) -> list[A]:
    """Return `views` crops of side x side pixels of images [..., h, w], [..., side, side] each.

    1: the middle; 5: the middle, then the four corners; 10: these, then all five mirrored (Krizhevsky et al. 2012).
    """
    height, width = images.shape[-2:]
    down, right = height - side, width - side
    places = [middle((side, side), (height, width)), (0, 0), (0, right), (down, 0), (down, right)][: min(views, 5)]
    found = [images[..., top : top + side, left : left + side] for top, left in places]
    mirrored = list(range(side - 1, -1, -1))
    return found + [crop[..., mirrored] for crop in found] if views == 10 else found


def enlarge(images: np.ndarray, side: int) -> np.ndarray:
    """Return images float32 [..., h, w], none of them larger, enlarged bilinearly: [..., side, side].

    The middle of pixel i lies at (i + 1/2) h / side - 1/2 of the old ones, and the border goes on outwards; as torch's
    `interpolate` has it.
    """
    rows, columns = (_shares(length, side) for length in images.shape[-2:])
    return rows @ images @ columns.T


def _shares(length: int, side: int) -> np.ndarray:
    """Return how much each of `length` pixels gives to each of `side`: float32 [side, length]."""
    place = np.maximum((np.arange(side) + 0.5) * (length / side) - 0.5, 0)
    low = np.minimum(place.astype(int), length - 1)
    part = place - low
    shares = np.zeros((side, length), np.float32)
    np.add.at(shares, (np.arange(side), low), 1 - part)
    np.add.at(shares, (np.arange(side), np.minimum(low + 1, length - 1)), part)
    return shares


def standardise_image(images: A) -> A:
    """Return the images with zero mean and unit variance each, over all their channels and pixels: float [b, c, h, w].

    The deviation is at least 1 / sqrt(c h w), as in TensorFlow's `per_image_standardization`: blank images become 0.
    """
    return _standardise_over(images, (1, 2, 3))


def standardise_channel(images: A) -> A:
    """Return the images with zero mean and unit variance of each channel of each image: float [b, c, h, w].

    The deviation is at least 1 / sqrt(h w), so that blank channels become 0.
    """
    return _standardise_over(images, (2, 3))


def _standardise_over(images: A, axes: tuple[int, ...]) -> A:
    centred = images - images.mean(axes, keepdims=True)
    deviation = (centred * centred).mean(axes, keepdims=True) ** 0.5
    return centred / deviation.clip(min=math.prod(images.shape[axis] for axis in axes) ** -0.5)


def standardise_dataset(images: A, mean: A, std: A) -> A:
    """Return the images with zero mean and unit variance of each channel over a data set: float [b, c, h, w], `mean`
    and `std` [c].
    """
    return (images - mean[:, None, None]) / std[:, None, None]


def to_input(pixels: np.ndarray, form: InputForm) -> np.ndarray:
    """Turn pixels uint8 [b, c, *form.size] into what a model takes: float32 [b, views, c, h, w].

    Raises:
        ValueError: where mean and std of the training images are needed and not known.
    """
    if form.pad is not None:
        top, left = middle(form.size, (form.pad, form.pad))
        rows, columns = ((before, form.pad - before - n) for before, n in zip((top, left), form.size, strict=True))
        pixels = np.pad(pixels, ((0, 0), (0, 0), rows, columns))
    images = pixels.astype(np.float32) / np.float32(255)
    whole = form.crop is None or form.standardise_first
    images = _standardise(images, form) if whole else images
    views = [images] if form.crop is None else crops(images, form.crop, form.views)
    views = views if whole else [_standardise(view, form) for view in views]
    return np.stack(views if form.enlarge is None else [enlarge(view, form.enlarge) for view in views], 1)


def _standardise(images: np.ndarray, form: InputForm) -> np.ndarray:
    if form.standardise == "image":
        return standardise_image(images)
    if form.standardise == "channel":
        return standardise_channel(images)
    if form.standardise == "dataset":
        if not (form.mean and form.std):
            raise ValueError("mean and std of the training images are not known")
        return standardise_dataset(images, np.array(form.mean, np.float32), np.array(form.std, np.float32))
    return images
