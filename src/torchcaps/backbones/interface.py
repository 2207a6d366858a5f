"""What a backbone is: a network from images to features that says how many channels and positions it leaves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn


class Window(NamedTuple):
    """Of a convolution or a layer of convolutional capsules, in positions."""

    kernel: int
    stride: int = 1
    padding: int = 0


class Backbone(nn.Module):
    """Images [b, c, h, w] to features [b, `channels`, h', w']; h' and w' are what `windows`, in turn, leave of h and w.

    Two backbones of the same windows leave the same positions of an image.
    """

    channels: int
    windows: tuple[Window, ...]


def count_positions(image_size: tuple[int, int], windows: Iterable[Window]) -> tuple[int, int]:
    """Return (height, width) of what is left of an image when each window has passed over what the one before left.

    Raises:
        ValueError: when the image is too small for them; the message names the smallest side that works.
    """
    windows = list(windows)
    smallest = 1
    for kernel, stride, padding in reversed(windows):
        smallest = max(1, (smallest - 1) * stride + kernel - 2 * padding)
    height, width = image_size
    if min(height, width) < smallest:
        raise ValueError(
            f"images of {height}x{width} are too small for this network: the smallest side that works is {smallest}"
        )
    for kernel, stride, padding in windows:
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
    return height, width
