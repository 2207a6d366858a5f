"""Readers of the composed sets: three streams over base images that no two of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from torchcaps.config import ComposeConfig, DataConfig
from torchcaps.data.catalogue import composition, find
from torchcaps.data.counter import make_key
from torchcaps.data.entry import SMALLEST
from torchcaps.data.images import Images, Splits
from torchcaps.data.overlap import Overlap
from torchcaps.data.splits import COMPOSE, hold_out, mix
from torchcaps.data.streams import Stream, enlarge
from torchcaps.data.viewpoints import Affine, Shifted
from torchcaps.memory import free_memory

INK = 20  # pixels of a smaller base image in the middle of `SMALLEST`, as of MNIST's digits
AFFNIST_CANVAS = 40 / 28  # side of affNIST's images, in sides of the digits'

S = TypeVar("S", bound=Stream)


def read_overlap(root: Path, config: DataConfig) -> Splits:
    """Return the splits of overlapped objects of `compose.base`; see `overlap.Overlap`."""
    settings = resolve(config)
    extent = 2 * (settings.shift or 0)
    extra = {name: getattr(settings, name) for name in ("objects", "single", "shift", "overlay")}
    return _streams(Overlap, root, config, lambda side: side + extent, extra)


def read_shifted(root: Path, config: DataConfig) -> Splits:
    """Return the splits of images of `compose.base` at all shifts; see `viewpoints.Shifted`."""
    shift = resolve(config).shift or 0
    return _streams(Shifted, root, config, lambda side: side + 2 * shift, {"shift": shift})


def read_affine(root: Path, config: DataConfig) -> Splits:
    """Return the splits of images of `compose.base` under affNIST's transforms; see `viewpoints.Affine`."""
    return _streams(Affine, root, config, lambda side: round(side * AFFNIST_CANVAS), {})


def resolve(config: DataConfig) -> ComposeConfig:
    """Return the settings of `config`, and those of the named set where they are None.

    Raises:
        ValueError: for a negative number.
    """
    for name, value in vars(config.compose).items():
        if isinstance(value, int) and value < 0:
            raise ValueError(f"compose.{name} is {value}: it must not be negative")
    settings = composition(config)
    assert settings is not None
    return settings


def _streams(
    kind: type[S], root: Path, config: DataConfig, canvas: Callable[[int], int], extra: dict[str, Any]
) -> Splits:
    """Return the splits of a composed set; `canvas` is the side of its images from that of the base images."""
    settings = resolve(config)
    if config.fit != "stretch" and config.sides is not None and config.sides[0] != config.sides[1]:
        height, width = config.sides
        raise ValueError(
            f"data.fit is {config.fit!r}: composed images are squares, which are stretched to be {width}x{height}; "
            "take 'stretch', or sides of one length"
        )
    bases = read_base(root, config, settings)
    if not settings.per_image:
        raise ValueError("compose.per_image is 0: it must be at least 1")
    splits = []
    for number, (base, asked) in enumerate(
        zip(bases, (settings.epoch, settings.held, settings.held), strict=True)  # train, validation, test
    ):
        if not len(base):
            splits.append(Images(torch.empty(0, *splits[0].shape, dtype=torch.uint8), base.labels, base.classes))
            continue
        total = settings.per_image * len(base)
        stream = kind(
            base=base,
            key=make_key(mix(COMPOSE, settings.seed or 0, number)),
            rounds=settings.per_image,
            epoch=min(asked or 0, total),
            side=settings.size or canvas(max(base.shape[1:])),
            channels=settings.channels or base.shape[0],
            resized=config.sides,
            **extra,
        )
        _check_memory(stream)
        splits.append(stream)
    train, validation, test = splits
    return Splits(train, test, validation)


def _check_memory(stream: Stream) -> None:
    """Raise ValueError where the memory does not hold what `stream` composes of, and the numbers of its images."""
    memory = free_memory()
    needed = stream.kept + 8 * len(stream)
    if memory is not None and needed > memory:
        raise ValueError(
            f"compose asks for {len(stream):,} images of {stream.side} pixels a side from {len(stream.base):,} base "
            f"images, which take {needed / 1e9:.3g} GB, and there are {memory / 1e9:.3g} GB: take a smaller "
            "compose.size, compose.shift, compose.channels or compose.epoch and compose.held"
        )


def read_base(root: Path, config: DataConfig, settings: ComposeConfig) -> tuple[Images, Images, Images]:
    """Return the base images of the training, validation and test streams; no image is in two of them.

    Raises:
        ValueError: for a base that is composed itself, or too large to be held in memory.
    """
    name = settings.base or ""
    entry, path = find(name)
    module, function = entry.reader.split(":")
    if entry.compose is not None:
        raise ValueError(f"compose.base is {name!r}, which is composed itself: name a stored set, such as mnist")
    stored = getattr(import_module(module), function)(path or root, replace(config, name=name, image_size=None))
    train, test, validation = stored
    if validation is None:
        train, validation = hold_out(train, config)
    bases = []
    for split in (train, validation, test):
        if not isinstance(split, Images):
            raise ValueError(f"compose.base is {name!r}, which is too large to be held in memory")
        if split.labels.ndim != 1:
            raise ValueError(f"compose.base is {name!r}, whose images show several classes: each must show one")
        small = max(split.shape[1:]) < SMALLEST
        bases.append(Images(frame(split.pixels), split.labels, split.classes) if small else split)
    return bases[0], bases[1], bases[2]


def frame(pixels: Tensor) -> Tensor:
    """Return small images [n, c, h, w], enlarged to 20 pixels a side where they are below it, in the middle of black
    28x28.
    """
    h, w = (max(length, INK) for length in pixels.shape[2:])
    if pixels.shape[2:] != (h, w):
        pixels, h, w = enlarge(pixels, max(h, w)), max(h, w), max(h, w)
    top, left = (SMALLEST - h) // 2, (SMALLEST - w) // 2
    return F.pad(pixels, (left, SMALLEST - w - left, top, SMALLEST - h - top))
