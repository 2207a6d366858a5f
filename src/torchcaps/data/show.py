"""Contact sheets: images of a set with their labels, before and after random changes, as a picture and as a page."""

from __future__ import annotations

import base64
import html
import io
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from torchcaps.config import AugmentConfig, DataConfig
from torchcaps.data.batches import Batches
from torchcaps.data.catalogue import find
from torchcaps.data.images import Source, Stored
from torchcaps.data.load import Data, load_data
from torchcaps.data.overlap import Overlap
from torchcaps.data.splits import in_turn, strata
from torchcaps.files import POLICY, replace_text, write_bytes

CHANGED_ROWS = 2
PART_COLOURS = ((0.1, 0.85, 0.2), (0.25, 0.45, 1.0), (1.0, 0.3, 0.2))  # green and blue as in FM agreement's Table 5
CELL = 1.15  # inches
LONGEST = 100  # characters of a file's name


def write_sheet(config: DataConfig, folder: Path, count: int = 10) -> tuple[Path, Path]:
    """Load `config.name` and write its contact sheet of `count` training images: folder/NAME.png and NAME.html.

    Without changes in `config.augment`, those of `demonstration` are shown.
    """
    data = load_data(config)
    augment = config.augment if config.augment != AugmentConfig() else demonstration(data)
    figure = draw_sheet(data, augment, count)
    folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^\w.+-]+", "-", config.name)[-LONGEST:]  # of `folder:PATH` too, of any system
    picture, page = folder / f"{stem}.png", folder / f"{stem}.html"
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_bytes(picture, buffer.getvalue())
    replace_text(page, _page(config, data, augment, buffer.getvalue()))
    return picture, page


def demonstration(data: Data) -> AugmentConfig:
    """Return changes that show what there is: moved and turned; of photographs also mirrored and in other colours."""
    reach = max(1, min(data.cut_size) // 8)
    if data.channels == 1 or isinstance(data.train, Overlap):
        return AugmentConfig(crop=reach, rotate=15.0, contrast=0.5)
    return AugmentConfig(crop=reach, flip=True, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1)


def draw_sheet(data: Data, augment: AugmentConfig, count: int = 10) -> Figure:
    """Return a figure of training images with their labels, below them the parts of overlapped ones, then rows after
    `augment`.
    """
    source, indices = _choose(data.train, count)
    count = len(indices)
    plain, targets = next(Batches(source, count, cut=data.crop).epoch(0))
    changed = [
        next(Batches(source, count, augment=augment, cut=data.crop).epoch(epoch))[0] for epoch in range(CHANGED_ROWS)
    ]
    rows = [("before", plain), *((f"after, {number}", images) for number, images in enumerate(changed, 1))]
    if isinstance(source, Overlap):
        rows.insert(1, ("its parts", _coloured_parts(source, indices)))
    figure = Figure(figsize=(CELL * count + 0.3, (CELL + 0.05) * len(rows) + 0.35), layout="constrained")
    cells = figure.subplots(len(rows), count, squeeze=False)
    for line, (label, images) in zip(cells, rows, strict=True):
        for axes, image in zip(line, images, strict=True):
            axes.imshow(_pixels(image), cmap="gray", vmin=0, vmax=max(1.0, image.max().item()))
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, fontsize=9)
    for axes, target in zip(cells[0], targets, strict=True):
        axes.set_title(_name(target, data.train.classes), fontsize=9, parse_math=False)
    return figure


def _choose(source: Source, count: int) -> tuple[Source, Tensor]:
    """Return what the first `count` images of are shown, and their numbers in it: of stored ones each class in turn."""
    count = min(count, len(source))
    if not isinstance(source, Stored):
        return source, torch.arange(count)
    return source.subset(in_turn(strata(source.labels).cpu(), count)), torch.arange(count)


def _coloured_parts(source: Overlap, indices: Tensor) -> Tensor:
    """Return each object in a colour of its own: [b, 3, side, side] in [0, 1]."""
    grey = source.parts(indices).pixels.float().mean(2) / 255  # [b, m, h, w]
    colours = torch.tensor([PART_COLOURS[m % len(PART_COLOURS)] for m in range(source.objects)], device=grey.device)
    return torch.einsum("bmhw,mc->bchw", grey, colours).clamp(max=1)


def _pixels(image: Tensor) -> np.ndarray:
    """Return an image as matplotlib takes it: grey [h, w], or colours [h, w, 3] of at most 1."""
    image = image.cpu()
    return image[0].numpy() if len(image) == 1 else (image / max(1.0, image.max().item())).movedim(0, -1).numpy()


def _name(target: Tensor, classes: tuple[str, ...]) -> str:
    shown = [int(target)] if target.ndim == 0 else target.nonzero().flatten().tolist()
    return " + ".join(classes[label].replace("_", " ") for label in shown)


def _page(config: DataConfig, data: Data, augment: AugmentConfig, picture: bytes) -> str:
    """Return a page that needs no other file."""
    entry, _ = find(config.name)
    changes = {name: value for name, value in asdict(augment).items() if value}
    facts = {
        "what it is": entry.about,
        "licence": entry.licence,
        "images": ", ".join(f"{name} {len(getattr(data, name)):,}" for name in ("train", "validation", "test")),
        "image": f"{data.channels} x {data.image_size[0]} x {data.image_size[1]}",
        "classes": f"{data.num_classes}: {', '.join(data.train.classes[:20])}{' ...' if data.num_classes > 20 else ''}",
        "changes": ", ".join(f"{name} {value}" for name, value in changes.items()),
    }
    rows = "".join(f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>" for key, value in facts.items())
    source = base64.b64encode(picture).decode()
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
{POLICY}
<title>{html.escape(config.name)}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem; max-width: 90rem; }}
img {{ max-width: 100%; }}
th {{ text-align: left; vertical-align: top; padding-right: 1.5rem; font-weight: 600; }}
</style>
<h1>{html.escape(config.name)}</h1>
<table>{rows}</table>
<img src="data:image/png;base64,{source}" alt="images of {html.escape(config.name)} before and after random changes">
</html>
"""
