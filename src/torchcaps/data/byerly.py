"""How Byerly, Kalganova and Dear (2020) change MNIST's digits, and Efficient-CapsNet after them.

In this order: half of the images are turned; each is moved along both axes, so far that no ink is lost; its width is
squeezed by 1 to 7 pixels and black put beside it; a patch of 4x4 pixels is black. Numbers are drawn from a normal
distribution with a deviation of 0.33, cut at 1: small changes are frequent. Up and left a shift is rounded up; down and
right it is a share of one pixel more, rounded down. What comes out is rounded and cut to the range of its type, where
the authors' floats keep what Lanczos' kernel overshoots.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from torchcaps.data.sending import sent

DEVIATION = 0.33
MOST = 0.9999  # of a number's share of what it scales
FURTHER = math.erfc(0.5 / DEVIATION / math.sqrt(2))  # how often a number is above 1/2: one column more before the image
ANGLE = 30  # degrees at most, in whole ones
SQUEEZE = 7  # pixels at most
PATCH, NEAREST, FARTHEST = 4, 4, 2  # side of the patch; its corner's distance from the first and the last place
TAPS = 3  # lobes of Lanczos' kernel


def change_digits(pixels: Tensor, uniform: Tensor) -> Tensor:
    """Return `pixels` [b, c, h, w], white on black, changed at random and of the same type.

    Args:
        pixels: [b, c, h, w], any type from 0 on.
        uniform: float64 [b, 12] in [0, 1), on the CPU: a coin, whether the image is turned; two for a normal number
            each, of the turn, the shifts down and to the right, and the squeeze; two coins and the place of the
            squeezed in one; the corner of the patch.
    """
    device = pixels.device
    coin, rest = uniform[:, 0] < 0.5, uniform[:, 1:]
    turn, down, right, squeeze = (_normal(rest[:, 2 * n], rest[:, 2 * n + 1]) for n in range(4))
    coins = (rest[:, 8] * 4).long()
    further = (rest[:, 8] * 4 - coins < FURTHER).long()
    angle = torch.where(coin, (ANGLE * turn.clamp(-MOST, MOST)).trunc(), 0.0)
    images = _turn(pixels.float(), sent(angle.float(), device))
    vertical, horizontal = (sent(_shares(each, device), device) for each in (down, right))
    images = _shift_within(images, vertical, horizontal, sent(coins % 2 > 0, device), sent(coins // 2 > 0, device))
    images = _squeeze(images, (SQUEEZE * squeeze.abs().clamp(max=MOST) + 1).long(), further)
    images = _cut(images, rest[:, 9:11])
    if pixels.is_floating_point():
        return images.to(pixels.dtype)
    return images.round_().clamp_(0, torch.iinfo(pixels.dtype).max).to(pixels.dtype)


def _shares(number: Tensor, device: torch.device) -> Tensor:
    """Return how much of a margin, in the widest type that `device` has: an Apple GPU has no float64."""
    share = number.abs()
    return share.float() if device.type == "mps" else share


def _normal(first: Tensor, second: Tensor) -> Tensor:
    """Return numbers of a normal distribution with `DEVIATION`, each of two uniform ones (Box and Muller)."""
    return DEVIATION * (-2 * (1 - first).log()).sqrt() * (2 * math.pi * second).cos()


def _turn(images: Tensor, angle: Tensor) -> Tensor:
    """Return the images turned counter-clockwise by `angle` [b] in degrees, bilinear; zeros enter. The pixel at (h / 2,
    w / 2) stays where it is.
    """
    _, _, h, w = images.shape
    radians = angle * (math.pi / 180)
    cos, sin = radians.cos()[:, None, None], radians.sin()[:, None, None]
    y = (torch.arange(h, device=images.device) - h / 2)[:, None]
    x = torch.arange(w, device=images.device) - w / 2
    grid = torch.stack([(2 * (cos * x - sin * y) + 1) / w, (2 * (sin * x + cos * y) + 1) / h], -1)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def _shift_within(images: Tensor, down: Tensor, right: Tensor, up: Tensor, left: Tensor) -> Tensor:
    """Return the images moved by shares `down` and `right` [b] of the margin of ink, on the sides that `up` and `left`
    choose.
    """
    ink = images.amax(1) > 0  # [b, h, w]
    rows = _move(_margins(ink.any(2)), down, up)
    columns = _move(_margins(ink.any(1)), right, left)
    _, _, h, w = images.shape
    y = (torch.arange(h, device=images.device) - rows[:, None]) % h  # what leaves is black, and enters again
    x = (torch.arange(w, device=images.device) - columns[:, None]) % w
    number = torch.arange(len(images), device=images.device)[:, None, None]
    return images[number, :, y[:, :, None], x[:, None]].movedim(-1, 1)


def _margins(there: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many empty lines stand before and after those that hold ink, of bool [b, n]; 0 without any ink."""
    some = there.any(1)
    return there.long().argmax(1) * some, there.flip(1).long().argmax(1) * some


def _move(margins: tuple[Tensor, Tensor], share: Tensor, back: Tensor) -> Tensor:
    """Return whole pixels [b], negative where `back`."""
    before, after = margins
    share = share.clamp(max=MOST)
    return torch.where(back, -(share * before).ceil(), (share * (after + 1)).floor()).long()


def _squeeze(images: Tensor, by: Tensor, further: Tensor) -> Tensor:
    """Return the images narrower by `by` [b] pixels, by a widened kernel of Lanczos; `by` // 2 + `further` columns
    before it.
    """
    which = sent(2 * (by - 1) + further, images.device)
    matrix = _matrices(images.shape[3], images.device, images.dtype)[which]  # [b, w, w]
    return torch.einsum("bchw,bvw->bchv", images, matrix)


@lru_cache(maxsize=8)
def _matrices(width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return those of `_lanczos` for each squeeze, without and with a column further, [14, width, width]."""
    with torch.inference_mode(False):
        every = [_lanczos(width, by, further) for by in range(1, SQUEEZE + 1) for further in (0, 1)]
        return torch.stack(every).to(device, dtype)


def _lanczos(width: int, by: int, further: int) -> Tensor:
    """Return the matrix [width, width] from columns to those of the narrower image with black beside it."""
    narrow = max(1, width - by)
    ratio = width / narrow
    centre = (torch.arange(narrow, dtype=torch.float64) + 0.5) * ratio - 0.5
    gap = (torch.arange(width, dtype=torch.float64) - centre[:, None]) / ratio
    weight = torch.where(gap.abs() < TAPS, torch.sinc(gap) * torch.sinc(gap / TAPS), 0.0)
    matrix = torch.zeros(width, width, dtype=torch.float64)
    start = min(by // 2 + further, width - narrow)
    matrix[start : start + narrow] = weight / weight.sum(1, keepdim=True)
    return matrix


def _cut(images: Tensor, corner: Tensor) -> Tensor:
    """Return a black patch whose corner is uniform from 4 to 6 short of the end, 22 of 28; `corner` [b, 2] in [0,
    1).
    """
    top, left = (
        sent(NEAREST + (corner[:, axis] * max(1, side - PATCH - FARTHEST - NEAREST + 1)).long(), images.device)[:, None]
        for axis, side in enumerate(images.shape[2:])
    )
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[2:])
    rows, columns = (rows >= top) & (rows < top + PATCH), (columns >= left) & (columns < left + PATCH)
    return images.masked_fill((rows[:, :, None] & columns[:, None])[:, None], 0)
