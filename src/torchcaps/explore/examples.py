"""The pictures that a page begins with, and how its board draws so that a drawing is like them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torchcaps.config import DataConfig
from torchcaps.data import Data, Source, load_data
from torchcaps.data.catalogue import CATALOGUE
from torchcaps.data.prepare import middle
from torchcaps.data.splits import in_turn
from torchcaps.forms import InputForm, SplitName
from torchcaps.inspect.pictures import is_line_art
from torchcaps.manifest import Manifest
from torchcaps.train import RunFolder
from torchcaps.train.opened import match_data, usual_split

MOST = 20  # examples
LOOKED = 2000  # images of a split whose labels are looked at, evenly spaced
INK = 0.25  # of white: pixels above it are inside what is drawn
PENS = (0.03, 0.25)  # share of the smaller side, thinnest and thickest


class Examples(NamedTuple):
    """Images of a split."""

    split: SplitName
    pixels: Tensor  # uint8 [n, c, h, w], before they are padded, cut and standardised
    targets: list[list[int]]  # classes that each shows


class Hand(NamedTuple):
    """How a drawing becomes like the images of line art."""

    pen: float  # width of a stroke, a share of the smaller side
    frame: tuple[float, float, float, float]  # middle (y, x) and size (height, width) of what is drawn, in shares


def read_examples(source: str | Path, manifest: Manifest) -> Examples:
    """Return images of the data of a run, or of weights by name where they are of a named set: one of each class in
    turn.

    They are of the test split, of an unfinished run of the validation split.

    Raises:
        OSError, ValueError: when they are not there, or are no pictures as the model takes them.
    """
    path, form = Path(source), manifest.input
    assert form is not None
    split: SplitName = "test"
    if (path / "config.json").exists():
        data = match_data(path, load_data(replace(RunFolder(path).read_config().data, download=False)))
        split = usual_split(path, data)
    else:
        data = _named(manifest, form)
    images: Source = getattr(data, split)
    if not len(images):
        raise ValueError(f"there are no {split} images")
    rows = choose_rows(images, MOST)
    pixels, targets = images.fetch(rows).cpu(), images.targets(rows).cpu()
    levels = (pixels * 255).round() if pixels.is_floating_point() else pixels
    return Examples(split, _inner(levels.clamp(0, 255).to(torch.uint8), form), list(map(_classes, targets)))


def _named(manifest: Manifest, form: InputForm) -> Data:
    """Return the named set that weights were trained on, its pictures as the model takes them."""
    entry = CATALOGUE.get(manifest.data.name)
    if entry is None or entry.takes_path:
        raise ValueError("the weights do not say on which named set they were trained")
    size = form.size[0] if form.pad is None and form.size[0] == form.size[1] else None
    data = load_data(DataConfig(entry.name, image_size=size, pad=form.pad))
    if data.train.classes != manifest.classes:
        raise ValueError(f"the classes of {entry.name} are not those of the weights")
    return data


def choose_rows(source: Source, count: int) -> Tensor:
    """Return the places, int64, of `count` images of a split, one of each class in turn.

    Of a large split the labels of 2,000 images are looked at, evenly spaced: some lie class by class.
    """
    looked = min(len(source), LOOKED)
    rows = torch.arange(looked) * len(source) // looked
    return rows[in_turn(source.targets(rows).cpu(), count)]


def _classes(target: Tensor) -> list[int]:
    """Return the classes of a label, int64 [], or of a label set [classes] of 0 and 1."""
    return [int(target)] if target.ndim == 0 else target.nonzero().flatten().tolist()


def _inner(pixels: Tensor, form: InputForm) -> Tensor:
    """Return images without the border that they were padded by.

    Raises:
        ValueError: when they are not of the size that a picture is brought to.
    """
    if form.pad is not None:
        top, left = middle(form.size, (form.pad, form.pad))
        pixels = pixels[..., top : top + form.size[0], left : left + form.size[1]]
    if pixels.shape[1:] != (form.channels, *form.size):
        raise ValueError(f"the images are {list(pixels.shape[1:])}, but the model takes {form.channels, *form.size}")
    return pixels


def learn_hand(pixels: Tensor) -> Hand | None:
    """Return how images uint8 [n, c, h, w] are drawn; None where they are no line art, or hold no ink.

    A stroke of width w and length l covers w l, and the brightness changes along its two sides, 2 l: so w is twice
    the one over the other. The frame is the median of the boxes around the ink.
    """
    images = pixels.float() / 255
    if not is_line_art(images):
        return None
    inked = images[:, 0] > INK
    there = inked.flatten(1).any(1)
    if not there.any():
        return None
    grey, inked = images[there, 0], inked[there]  # [n, h, w]
    height, width = grey.shape[1:]
    padded = F.pad(grey, (1, 1, 1, 1))
    here = padded[:, :-1, :-1]
    edges = ((padded[:, 1:, :-1] - here).square() + (padded[:, :-1, 1:] - here).square()).sqrt().sum()
    pen = 2 * grey.sum() / edges.clamp_min(1e-6) / min(height, width)
    spans = [_span(inked.any(2 - axis)) / (height, width)[axis] for axis in (0, 1)]  # of each [n, 2]
    (top, bottom), (left, right_end) = (each.median(0).values.tolist() for each in spans)
    frame = ((top + bottom) / 2, (left + right_end) / 2, bottom - top, right_end - left)
    return Hand(min(max(pen.item(), PENS[0]), PENS[1]), frame)


def _span(there: Tensor) -> Tensor:
    """Return first and behind the last of the places in bool [n, m] that are True: [n, 2]."""
    places = torch.arange(there.shape[1])
    first = torch.where(there, places, there.shape[1]).amin(1)
    last = torch.where(there, places, -1).amax(1) + 1
    return torch.stack([first, last], 1).float()
