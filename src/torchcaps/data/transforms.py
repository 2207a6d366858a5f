"""Random changes and standardisation of whole batches, on the device the batch is on.

A transform is a pure function of the batch and its parameters, one row of them per image. Those that only move pixels
are integer indexing: exact, and for any type of pixel. All parameters of a step are drawn together, on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from torchcaps.config import AugmentConfig
from torchcaps.data import colour
from torchcaps.data.byerly import change_digits
from torchcaps.data.sending import sent


class Draws(NamedTuple):
    """The random parameters of one batch, on the CPU."""

    crop: Tensor  # int64 [b, 2], top and left of the crop in the padded image, in 0 .. 2 padding
    flip: Tensor  # bool [b]
    shift: Tensor  # int64 [b, 2], pixels down and to the right
    angle: Tensor  # float32 [b], degrees, counter-clockwise
    scale: Tensor  # float32 [b], factor
    shear: Tensor  # float32 [b], degrees
    cut: Tensor  # float64 [b, 2] in [0, 1), how far down and right a smaller cut lies
    brightness: Tensor  # float32 [b], factor
    contrast: Tensor  # float32 [b], factor
    saturation: Tensor  # float32 [b], factor
    hue: Tensor  # float32 [b], circles
    byerly: Tensor  # float64 [b, 12] in [0, 1), see `data.byerly`

    def rows(self, part: slice) -> Draws:
        """Return the parameters of some of the images."""
        return Draws(*(parameter[part] for parameter in self))


def check_augment(config: AugmentConfig) -> None:
    """Raise ValueError for values that no image can be changed by."""
    for name in (each.name for each in fields(config)):
        if (value := getattr(config, name)) < 0:
            raise ValueError(f"augment.{name} is {value}: it must not be negative")
    if config.alternate and not config.flip:
        raise ValueError("augment.alternate says when images are mirrored: set augment.flip too, or leave it out")
    if config.scale >= 1:
        raise ValueError(f"augment.scale is {config.scale}: it must be below 1, or an image could vanish")
    if config.shear >= 90:
        raise ValueError(f"augment.shear is {config.shear} degrees: it must be below 90")
    for name in ("brightness", "contrast", "saturation"):
        if (value := getattr(config, name)) > 1:
            raise ValueError(f"augment.{name} is {value}: it must not exceed 1, or factors could be negative")
    if config.hue > 0.5:
        raise ValueError(f"augment.hue is {config.hue} circles: it must not exceed 0.5, which reaches every hue")


def draw(config: AugmentConfig, count: int, seed: np.random.SeedSequence) -> Draws:
    """Return independent parameters for `count` images. Each has its own column of uniform numbers, so that switching
    one on or off leaves the others as they are.
    """
    generator = torch.Generator().manual_seed(int(seed.generate_state(1, np.uint64)[0]))
    uniform = torch.rand(count, 8, dtype=torch.float64, generator=generator)  # [b, 8], in [0, 1)
    further = torch.rand(count, 6, dtype=torch.float64, generator=generator)
    last = torch.rand(count, 12, dtype=torch.float64, generator=generator)
    angle, scale, shear = (2 * uniform[:, 5:] - 1).float().unbind(1)
    brightness, contrast, saturation, hue = (2 * further[:, 2:] - 1).float().unbind(1)
    return Draws(
        crop=(uniform[:, 0:2] * (2 * config.crop + 1)).long(),
        flip=uniform[:, 2] < 0.5,
        shift=(uniform[:, 3:5] * (2 * config.shift + 1)).long() - config.shift,
        angle=config.rotate * angle,
        scale=1 + config.scale * scale,
        shear=config.shear * shear,
        cut=further[:, :2],
        brightness=1 + config.brightness * brightness,
        contrast=1 + config.contrast * contrast,
        saturation=1 + config.saturation * saturation,
        hue=config.hue * hue,
        byerly=last,
    )


def augment(pixels: Tensor, config: AugmentConfig, draws: Draws) -> Tensor:
    """Crop, flip, shift, then rotate, scale and shear, then colours: uint8 [b, c, h, w] -> float32 in [0, 1]."""
    return recolour(turn(to_float(move(pixels, config, draws)), config, draws), config, draws)


def move(pixels: Tensor, config: AugmentConfig, draws: Draws) -> Tensor:
    """Crop, flip and shift, by whole pixels and exactly: [b, c, h, w] of any type; zeros enter.

    Before that what `data.byerly` does, rounded to whole numbers.
    """
    if config.byerly:
        pixels = change_digits(pixels, draws.byerly)
    if config.crop:
        pixels = random_crop(pixels, draws.crop, config.crop)
    if config.flip:
        pixels = horizontal_flip(pixels, draws.flip)
    if config.shift:
        pixels = shift(pixels, draws.shift, config.shift)
    return pixels


def turn(images: Tensor, config: AugmentConfig, draws: Draws) -> Tensor:
    """Rotate, scale and shear: float [b, c, h, w]; zeros enter."""
    if config.rotate or config.scale or config.shear:
        return affine(images, draws.angle, draws.scale, draws.shear)
    return images


def recolour(images: Tensor, config: AugmentConfig, draws: Draws) -> Tensor:
    """Change brightness, contrast, saturation and hue: float [b, c, h, w] in [0, 1]; what leaves that range is cut."""
    if config.brightness:
        images = colour.scale_brightness(images, draws.brightness)
    if config.contrast:
        images = colour.scale_contrast(images, draws.contrast)
    if config.saturation and images.shape[1] == 3:
        images = colour.scale_saturation(images, draws.saturation)
    if config.hue and images.shape[1] == 3:
        images = colour.turn_hue(images, draws.hue)
    return images


def to_float(pixels: Tensor) -> Tensor:
    """Map uint8 0 .. 255 -> float32 in [0, 1]; floats stay as they are."""
    return pixels if pixels.is_floating_point() else pixels.float().div_(255)


def random_crop(batch: Tensor, corner: Tensor, padding: int) -> Tensor:
    """Pad each side with `padding` zeros, then cut out the image's own size at `corner` int64 [b, 2] (top, left)."""
    b, _, h, w = batch.shape
    corner = sent(corner, batch.device)
    windows = F.pad(batch, (padding,) * 4).unfold(2, h, 1).unfold(3, w, 1)  # [b, c, top, left, h, w], a view
    return windows[torch.arange(b, device=batch.device), :, corner[:, 0], corner[:, 1]]


def cut_at(batch: Tensor, place: Tensor, side: int) -> Tensor:
    """Cut out side x side pixels, at any place with equal chance where `place` float [b, 2] is uniform in [0, 1)."""
    b, _, h, w = batch.shape
    room = torch.tensor([h - side + 1, w - side + 1], dtype=torch.float64)
    top, left = sent((place.cpu() * room).long(), batch.device).unbind(1)
    windows = batch.unfold(2, side, 1).unfold(3, side, 1)  # [b, c, top, left, side, side], a view
    return windows[torch.arange(b, device=batch.device), :, top, left]


def horizontal_flip(batch: Tensor, flip: Tensor) -> Tensor:
    """Mirror left to right the images [b, c, h, w] where `flip` bool [b]."""
    columns = torch.arange(batch.shape[3], device=batch.device)
    columns = torch.where(sent(flip, batch.device)[:, None], columns.flip(0), columns)  # [b, w]
    return batch.gather(3, columns[:, None, None, :].expand(batch.shape))


def shift(batch: Tensor, by: Tensor, limit: int) -> Tensor:
    """Translate by whole pixels, `by` int64 [b, 2] (down, right) in -limit .. limit; zeros enter."""
    return random_crop(batch, limit - by, limit)


def enlarge(batch: Tensor, side: int) -> Tensor:
    """Return images float [b, c, h, w] enlarged bilinearly to side x side pixels, as `prepare.enlarge` has it on
    arrays.
    """
    if batch.shape[-2:] == (side, side):
        return batch
    if not len(batch):
        return batch.new_empty(*batch.shape[:2], side, side)
    return F.interpolate(batch, (side, side), mode="bilinear", align_corners=False)


def affine(batch: Tensor, angle: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """Shear, then scale, then rotate about the centre; bilinear, zeros enter. Float [b, c, h, w]; parameters [b].

    `angle` in degrees is counter-clockwise as the image is looked at; `scale` above one enlarges; `shear` in degrees
    moves a point that lies y below the centre by tan(shear) y to the right.
    """
    _, _, h, w = batch.shape
    matrix = sent(source_matrix(angle, scale, shear), batch.device)  # [b, 2, 2]
    y = torch.arange(h, device=batch.device) - (h - 1) / 2  # pixels from the centre
    x = torch.arange(w, device=batch.device) - (w - 1) / 2
    # Written out rather than by affine_grid: its matrix product loses the positions to TF32 and to autocast.
    a, b, c, d = matrix.flatten(1)[:, :, None, None].unbind(1)  # each [b, 1, 1]
    grid = torch.stack([(a * x + b * y[:, None]) * (2 / w), (c * x + d * y[:, None]) * (2 / h)], -1)  # [b, h, w, 2]
    return F.grid_sample(batch, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def source_matrix(angle: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """Return the matrix [b, 2, 2] that leads from a point (x, y) of the result, y downwards, to where it was: the
    inverse of rotation [[cos, sin], [-sin, cos]] times scale times shear [[1, tan], [0, 1]].
    """
    turn, slope = angle * (math.pi / 180), torch.tan(shear * (math.pi / 180))
    cos, sin = torch.cos(turn) / scale, torch.sin(turn) / scale
    return torch.stack([cos - slope * sin, -sin - slope * cos, sin, cos], 1).unflatten(1, (2, 2))
