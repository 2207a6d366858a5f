"""Positions of the windows of convolutional capsules."""

from __future__ import annotations

from typing import Any


def count_places(poses: Any, weight: Any, stride: int, padding: int) -> int:
    """Return the number of windows of an image, by the shapes of poses [b, h, w, ...] and weight [j, kh, kw, ...]."""
    down, across = (
        (size + 2 * padding - k) // stride + 1 for size, k in ((poses[1], weight[1]), (poses[2], weight[2]))
    )
    return down * across
