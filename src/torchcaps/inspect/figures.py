"""The static figures of a report, as matplotlib Figures: for the page (SVG), and for papers (PNG and PDF).

They use the colours of `INK` only, so that a page can put its own in their place.
"""

from __future__ import annotations

import io
import itertools
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy import ndarray
from torch import Tensor

from torchcaps.files import replacing
from torchcaps.inspect.couplings import Box
from torchcaps.inspect.measured import Calibration
from torchcaps.inspect.pictures import heat, is_line_art, visible

INK = {"ink": "#1b1f27", "muted": "#677084", "line": "#dde1e9", "accent": "#2f5fd0", "second": "#d9642c"}
SIZE = (4.6, 2.9)  # inches
SHOWN = 30  # classes that a figure names
TILE = 0.94  # of a column: the longer side of an image


@contextmanager
def style() -> Iterator[None]:
    """Set Matplotlib's settings while a figure is made or saved. Text is taken as it is, never as formulas."""
    settings: Any = {
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "torchcaps",
        "pdf.fonttype": 42,
        "font.size": 9,
        "text.color": INK["ink"],
        "axes.edgecolor": INK["line"],
        "axes.labelcolor": INK["muted"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": INK["line"],
        "grid.linewidth": 0.6,
        "xtick.color": INK["muted"],
        "ytick.color": INK["muted"],
        "legend.frameon": False,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # of names in scripts that the font lacks
        yield


def _axes(size: tuple[float, float] = SIZE, **settings: Any) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set(**settings)
    return figure, axes


def draw_curves(history: Sequence[Mapping], quantity: str, selected: int | None = None) -> Figure:
    """Return training and validation over the epochs, of "loss" or "accuracy"; `selected` is the epoch that was
    kept.
    """
    figure, axes = _axes(xlabel="epoch", ylabel=quantity)
    epochs = [record["epoch"] for record in history]
    lowest, largest = float("inf"), 0.0
    for split, colour in (("train", "accent"), ("validation", "second")):
        values = [record.get(f"{split}_{quantity}") for record in history]
        pairs = [(epoch, value) for epoch, value in zip(epochs, values, strict=True) if value is not None]
        if pairs:
            axes.plot(*zip(*pairs, strict=True), ".-", color=INK[colour], label=split, lw=1.6, ms=4)
            lowest = min(lowest, *(value for _, value in pairs), float("inf"))
            largest = max(largest, *(value for _, value in pairs), 0.0)
    if selected:
        axes.axvline(selected, color=INK["muted"], lw=1, ls=":", label=f"kept: epoch {selected}")
    if quantity == "loss" and 0 < lowest * 20 < largest:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda *_: "")
    if quantity == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure


def draw_confusion(counts: Tensor, classes: Sequence[str]) -> Figure:
    """Return counts [classes, classes] of `measured.confusion`; each row is shaded by its own sum."""
    many = len(classes) > SHOWN
    side = 4.6 if len(classes) <= 12 or many else 7.0
    figure, axes = _axes((side, side * 0.92), xlabel="found", ylabel="shown")
    share = (counts / counts.sum(1, keepdim=True).clamp_min(1)).sqrt()  # so that single errors are seen
    shades = torch.tensor([int(INK["accent"][k : k + 2], 16) / 255 for k in (1, 3, 5)]).expand(*share.shape, 3)
    axes.imshow(torch.cat([shades, 0.85 * share.unsqueeze(-1)], -1).numpy(), interpolation="nearest")
    axes.grid(False)
    if many:
        return figure
    names = [_wrapped(name) for name in classes]
    long = max(map(len, names), default=0) > 3
    axes.set_xticks(range(len(names)), names, rotation=90 if long else 0)
    axes.set_yticks(range(len(names)), names)
    for row, column in counts.nonzero().tolist():
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=7.5)
    return figure


def draw_class_accuracy(accuracy: Tensor, classes: Sequence[str]) -> Figure:
    """Return accuracy [classes] of each class; of many classes, of the worst."""
    order = accuracy.nan_to_num(2.0).argsort(stable=True).tolist() if len(classes) > SHOWN else range(len(classes))
    picked = [n for n in order if not accuracy[n].isnan()][:SHOWN]
    names = [_wrapped(classes[n]) for n in picked]
    lines = sum(name.count("\n") for name in names)  # beyond one each
    figure, axes = _axes((SIZE[0], max(1.6, 0.5 + 0.22 * len(picked) + 0.14 * lines)), xlim=(0, 1.12))
    values = accuracy[picked].tolist()
    axes.barh(range(len(picked)), values, color=INK["accent"], height=0.66)
    for place, value in enumerate(values):
        axes.text(value + 0.01, place, f"{value:.1%}", va="center", fontsize=7.5)
    axes.set_yticks(range(len(picked)), names)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axes.set_ylim(len(picked) - 0.4, -0.6)
    axes.grid(False, axis="y")
    return figure


def draw_calibration(found: Calibration, word: str = "probability") -> Figure:
    """Return how often a prediction came true, over its score; a dot's area grows with how many there were.

    `word` is what a score is called.
    """
    figure, axes = _axes(xlabel=word, ylabel="came true", xlim=(0, 1.03), ylim=(0, 1.05))
    axes.plot([0, 1], [0, 1], color=INK["muted"], lw=1, ls=":")
    there = found.counts > 0
    size = 12 + 140 * found.counts[there] / found.counts.max()
    axes.plot(found.confidence[there], found.accuracy[there], color=INK["accent"], lw=1.2)
    axes.scatter(found.confidence[there], found.accuracy[there], s=size.tolist(), color=INK["accent"], zorder=3)
    ticks = [0, 0.25, 0.5, 0.75, 1]
    axes.set_xticks(ticks, [f"{tick:.0%}" if word == "probability" else f"{tick:g}" for tick in ticks])
    axes.set_yticks(ticks, [f"{tick:.0%}" for tick in ticks])
    return figure


def draw_timing(history: Sequence[Mapping]) -> Figure:
    """Return images a second in training, epoch by epoch."""
    figure, axes = _axes(xlabel="epoch", ylabel="images / s")
    axes.bar([record["epoch"] for record in history], [record["images_per_second"] for record in history], width=0.8)
    for patch in axes.patches:
        patch.set_color(INK["accent"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(False, axis="x")
    return figure


def draw_kept(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Return accuracy over capsules kept: of each curve, by name, its points (capsules, accuracy); a single one is a
    dot.
    """
    figure, axes = _axes(xlabel="capsules kept", ylabel="accuracy", xscale="log")
    for name, points in curves.items():
        axes.plot(*zip(*sorted(points), strict=True), ".-", lw=1.4, ms=5, label=name)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend()
    return figure


def draw_tiles(
    rows: Mapping[str, Tensor],
    titles: Sequence[str] = (),
    below: Mapping[str, Tensor] | None = None,
    others: Sequence[str] = (),
    ink: bool | None = None,
) -> Figure:
    """Return rows of images [columns, c, h, w] in [0, 1] under each other, named, each image in its own proportions.

    Args:
        rows: the images; of other than one channel or three the first is shown.
        titles: of columns, one line or more each, above the first row.
        below: rows of other columns, under the first ones, if any.
        others: titles of the columns of `below`.
        ink: whether what is bright in one channel is drawn dark, as ink on paper; None: where the first row is line
            art, see `is_line_art`.
    """
    if ink is None:
        ink = is_line_art(next(iter(rows.values())))
    groups = [(rows, _lined(titles)), *([(below, _lined(others))] if below else [])]
    columns = max(len(row) for each, _ in groups for row in each.values())
    heights = [0.66 * len(each) + 0.1 + 0.15 * _lines(lined) for each, lined in groups]
    figure = Figure(figsize=(columns * 0.62 + 0.7, sum(heights)), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (each, lined) in zip(panels, groups, strict=True):
        _draw_rows(axes, each, lined, columns, ink)
    return figure


def _draw_rows(axes: Axes, rows: Mapping[str, Tensor], titles: Sequence[str], columns: int, ink: bool) -> None:
    """Draw rows of images below their titles, where there is room for so many columns."""
    for place, row in enumerate(rows.values()):
        box = frame(row)
        for column, image in enumerate(row):
            show_image(axes, image, ink, box, column, place)
    for column, title in enumerate(titles):
        axes.text(column + TILE / 2, -0.08, title, ha="center", fontsize=7)
    axes.set(xlim=(0, columns), ylim=(len(rows), -0.05 - 0.25 * _lines(titles)), aspect="equal", xticks=[])
    axes.set_yticks([place + TILE / 2 for place in range(len(rows))], list(rows), fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(False)


def show_image(axes: Axes, image: Tensor, ink: bool, box: Box | None = None, column: float = 0, row: float = 0) -> None:
    """Draw an image [c, h, w] in [0, 1] into `box` (None: all) of the cell of side 1 at (column, row)."""
    box = box or Box()
    pixels = visible(image).movedim(0, -1).float().clamp(0, 1).cpu().numpy()
    left, top = column + box.left, row + box.top
    extent = (left, left + box.width, top + box.height, top)
    settings: Any = {"cmap": "gray_r" if ink else "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
    axes.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, extent=extent, **settings)


def frame(images: Tensor) -> Box:
    """Return where images [..., h, w] lie in a cell of side 1: in their own proportions, in the middle of a tile."""
    height, width = images.shape[-2:]
    longer = max(height, width)
    tall, wide = TILE * height / longer, TILE * width / longer
    return Box((TILE - tall) / 2, (TILE - wide) / 2, tall, wide)


def _lined(titles: Sequence[str]) -> list[str]:
    """Return titles in lines that a column has room for."""
    return ["\n".join(_wrapped(line, 10) for line in title.splitlines()) for title in titles]


def _lines(titles: Sequence[str]) -> int:
    """Return the lines of the longest."""
    return max((title.count("\n") + 1 for title in titles), default=1)


def pale(image: Tensor) -> Tensor:
    """Return an image [c, h, w] in [0, 1] as ink [1, h, w] in [0, 0.6], on which colours are seen at any shade: line
    art as it is, and of others what is dark.
    """
    grey = image.float().mean(0, keepdim=True)
    return 0.6 * (grey if is_line_art(image[None]) else 1 - grey)


def draw_couplings(image: Tensor, maps: Tensor, names: Sequence[str], box: Box | None, equal: float) -> Figure:
    """Return shares of one image's parts, maps [t, j, h, w], over the image [c, H, W]; a row for each iteration.

    Orange places gave the parent of the column more than an `equal` share, blue ones less; a line below says how much.
    `names` are the parents'. Children without positions, of which `box` is None, have no place in the image: they stand
    side by side on a bare ground, over their numbers.
    """
    shares = maps - equal
    most = shares.abs().max().item()
    colours = heat(shares, most).movedim(2, -1).numpy()  # [t, j, h, w, 4]
    said = f"orange: up to {most:.2g} more than an equal share of {equal:.2g}; blue: as much less"
    if box is None:
        return _draw_strips(colours, names, said)
    ground = pale(image).expand(maps.shape[1], -1, -1, -1)
    figure = draw_tiles({f"iteration {t + 1}": ground for t in range(len(maps))}, names, ink=True)
    axes, tile = figure.axes[0], frame(image)
    for row, column in torch.cartesian_prod(*map(torch.arange, maps.shape[:2])).tolist():
        left, top = column + tile.left + tile.width * box.left, row + tile.top + tile.height * box.top
        extent = (left, left + tile.width * box.width, top + tile.height * box.height, top)
        axes.imshow(colours[row, column], extent=extent, interpolation="nearest", alpha=0.8, zorder=2)
    axes.set(xlim=(0, maps.shape[1]), ylim=(len(maps), -0.3))
    axes.set_xlabel(textwrap.fill(said, 12 * maps.shape[1] + 8), fontsize=7)  # as wide as the columns
    return figure


def _draw_strips(colours: ndarray, names: Sequence[str], said: str) -> Figure:
    """Return colours [t, j, h, w, 4] of children that stand nowhere: a row for each iteration, a column for each of the
    parents `names`, and in it the children from left to right.
    """
    rows, columns, _, count, _ = colours.shape
    lined = _lined(names)
    height = 0.5 * rows + 0.75 + 0.15 * _lines(lined)
    figure = Figure(figsize=(0.8 * columns + 0.9, height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for row, column in itertools.product(range(rows), range(columns)):
        axes = panels[row, column]
        axes.imshow(colours[row, column], extent=(0.5, count + 0.5, 0, 1), interpolation="nearest", aspect="auto")
        axes.set(yticks=[], xticks=sorted({1, count}))
        axes.tick_params(length=2, labelsize=6)
        axes.grid(False)
    for axes, name in zip(panels[0], lined, strict=True):
        axes.set_title(name, fontsize=7)
    for t, axes in enumerate(panels[:, 0]):
        axes.set_ylabel(f"iteration {t + 1}", fontsize=7, rotation=0, ha="right", va="center")
    for axes in panels[-1]:
        axes.set_xlabel("child", fontsize=7)
    said += "; these children stand nowhere in the image"
    figure.supxlabel(textwrap.fill(said, 16 * columns + 16), fontsize=7, color=INK["muted"])
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write `figure` as `path`.png and `path`.pdf."""
    with style():
        with replacing(path.with_suffix(".png")) as temporary:
            figure.savefig(temporary, dpi=160)
        figure.set_layout_engine("none")  # it is laid out now, and that takes as long as drawing
        with replacing(path.with_suffix(".pdf")) as temporary:
            figure.savefig(temporary, metadata={"CreationDate": None})


def save_svg(figure: Figure, target: Path | IO[str]) -> None:
    """Write `figure` as SVG to `target`, the same text for the same figure."""
    with style(), replacing(target) if isinstance(target, Path) else nullcontext(target) as place:
        figure.savefig(place, format="svg", metadata={"Date": None})


def to_svg(figure: Figure) -> str:
    """Return `figure` as an SVG element without size, whose colours are the variables of the page."""
    file = io.StringIO()
    with style():
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"([^>]*?) width="[^"]*"', r"\1\2", svg, count=1)
    svg = re.sub(
        r' id="(?:figure|axes|patch|text|line2d|matplotlib\.axis|xtick|ytick|legend|PathCollection)_\d+"', "", svg
    )
    for name, colour in INK.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def _wrapped(name: str, width: int = 22) -> str:
    """Return the whole name, in lines of so many letters at most."""
    return "\n".join(textwrap.wrap(" ".join(str(name).split()), width)) or name
