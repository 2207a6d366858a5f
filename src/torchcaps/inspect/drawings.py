"""Figures of what probes find: how votes agree, which pairs of them do, what is decoded of capsules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from torchcaps.inspect.agreement import Agreement
from torchcaps.inspect.figures import INK, draw_tiles, frame, show_image, style
from torchcaps.inspect.pictures import is_line_art
from torchcaps.inspect.reconstruction import absent_class, colour_sets, pose_sweep
from torchcaps.models import Model

REACH = 0.25  # of a pose sweep
NUMBERED = 40  # children on a circle that have room for their numbers


def draw_agreement(rows: Mapping[str, Mapping[int, Agreement]]) -> Figure:
    """Return a row for each name, e.g. of a routing, and a panel for each epoch: bars of percentage, a line of
    length.
    """
    columns = max(len(epochs) for epochs in rows.values())
    with style():
        figure = Figure(figsize=(2.3 * columns, 1.9 * len(rows)), layout="constrained")
        panels = figure.subplots(len(rows), columns, squeeze=False, sharex=True)
        for row, (name, epochs) in zip(panels, rows.items(), strict=True):
            for axes, (epoch, agreement) in zip(row, sorted(epochs.items()), strict=False):
                _draw_panel(axes, agreement, f"{name}, epoch {epoch}")
            for axes in row[len(epochs) :]:
                axes.set_axis_off()
    return figure


def _draw_panel(axes: Axes, agreement: Agreement, title: str) -> None:
    width = 2 / len(agreement.share)
    middles = [-1 + (step + 0.5) * width for step in range(len(agreement.share))]
    axes.bar(middles, agreement.share, 0.9 * width, color=INK["line"])
    axes.set(xlim=(-1, 1), xlabel="cosine of vote and parent", ylabel="% of votes")
    axes.set_title(title, fontsize=8)
    beside = axes.twinx()
    seen = [(x, y) for x, y, share in zip(middles, agreement.length, agreement.share, strict=True) if share]
    if seen:
        beside.plot(*zip(*seen, strict=True), ".-", color=INK["accent"], lw=1.4, ms=3)
    beside.set_ylabel("mean length", color=INK["accent"])
    beside.set_ylim(0)
    beside.grid(False)


def draw_pairs(
    image: Tensor, products: Tensor, places: Tensor, names: Sequence[str], ring: Tensor | None = None
) -> Figure:
    """Return the strongest pairs of each parent over the image [c, h, w], lines from child to child; a column for
    each parent.

    Products [k, m] make lines opaque, the largest of all fully; places are [k, m, 2, 2], `names` the k parents'. Where
    children stand on a `ring` [i, 2], they are numbered dots on a bare ground, and the image is a column before them.
    """
    if ring is not None:
        return _draw_circles(image, products, places, names, ring)
    figure = draw_tiles({"pairs": image.expand(len(names), -1, -1, -1)}, names)
    box = frame(image)
    (axes,), largest = figure.axes, products.max().clamp_min(torch.finfo(products.dtype).tiny)
    for column, (strengths, ends) in enumerate(zip(products / largest, places.tolist(), strict=True)):
        for strength, ((y1, x1), (y2, x2)) in zip(strengths.clamp(0, 1).tolist(), ends, strict=True):
            across = [column + box.left + box.width * x for x in (x1, x2)]
            down = [box.top + box.height * y for y in (y1, y2)]
            axes.plot(across, down, color=INK["second"], alpha=strength, lw=1, marker="o", ms=1.6, zorder=3)
    axes.set(xlim=(0, len(names)))
    return figure


def _draw_circles(image: Tensor, products: Tensor, places: Tensor, names: Sequence[str], ring: Tensor) -> Figure:
    """Do as `draw_pairs` does, of children that stand on a circle."""
    largest = products.max().clamp_min(torch.finfo(products.dtype).tiny)
    figure = Figure(figsize=(1.5 * (len(names) + 1), 1.8), layout="constrained")
    first, *others = figure.subplots(1, len(names) + 1)
    show_image(first, image, is_line_art(image[None]), frame(image))
    first.set_title("image", fontsize=8)
    for axes, name, strengths, ends in zip(others, names, products / largest, places.tolist(), strict=True):
        for strength, ((y1, x1), (y2, x2)) in zip(strengths.clamp(0, 1).tolist(), ends, strict=True):
            axes.plot([x1, x2], [y1, y2], color=INK["second"], alpha=strength, lw=1.4)
        rows, columns = ring.T.tolist()
        axes.plot(columns, rows, "o", color=INK["accent"], ms=2.4)
        for number, (row, column) in enumerate(zip(rows, columns, strict=True), 1):
            if len(rows) <= NUMBERED:
                place = [0.5 + 1.18 * (at - 0.5) for at in (column, row)]
                axes.text(*place, str(number), ha="center", va="center", fontsize=5, color=INK["muted"])
        axes.set_title(name, fontsize=8)
        axes.set(xlim=(0, 1), ylim=(1, 0), aspect="equal")
    for axes in (first, *others):
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[:].set_visible(False)
    return figure


@torch.no_grad()
def draw_reconstructions(
    model: Model, images: Tensor, labels: Tensor, sweep: int = 0, rows: int = 6, classes: Sequence[str] = ()
) -> Figure:
    """Return images, below each its reconstruction from the winning capsule, and under them the pose sweep of one.

    Args:
        model: with a decoder; it is left in evaluation mode.
        images: [b, c, h, w] in [0, 1]; labels int64 [b].
        sweep: index of the image whose pose is moved, by as much as stands above its own columns.
        rows: dimensions of the pose that are shown, those whose sweep changes the image most.
        classes: their names; they are numbered where there are none.
    """
    output = model.eval()(images)
    predicted = output.scores.argmax(1).tolist()
    frames = pose_sweep(model, images[sweep], REACH)  # [d, s, c, h, w]
    most = frames.std(1).flatten(1).mean(1).argsort(descending=True)[:rows].tolist()
    pairs = [(_named(p, classes), _named(l, classes)) for p, l in zip(predicted, labels.tolist(), strict=True)]
    titles = [p if p == l else f"{p}, is {l}" for p, l in pairs]
    moved = [f"{x:+.2f}" for x in torch.linspace(-REACH, REACH, frames.shape[1]).tolist()]
    moved[len(moved) // 2] = f"image {sweep + 1}"
    tiles = {"input": images, "decoded": output.aux["reconstruction"]}
    return draw_tiles(tiles, titles, {f"pose {dimension}": frames[dimension] for dimension in most}, moved)


@torch.no_grad()
def draw_overlaps(
    model: Model, images: Tensor, targets: Tensor, predicted: Tensor, classes: Sequence[str] = ()
) -> Figure:
    """Return overlapped objects told apart: below each image what is decoded of it, each class in its own colour,
    over it.

    The rows are the input, the classes that it shows, those that the network found, and one that is not there: the
    likeliest of those that it neither shows nor was found to show (Sabour et al. 2017, figure 5).

    Args:
        model: with a decoder; it is left in evaluation mode.
        images: [b, c, h, w] in [0, 1].
        targets, predicted: label sets, bool [b, classes].
        classes: their names; they are numbered where there are none.
    """
    output = model.eval()(images)
    poses, absent = output.capsules[-1].poses, absent_class(output.scores, targets, predicted)
    rows = {
        "input": images,
        "shown": colour_sets(model, poses, targets, images),
        "found": colour_sets(model, poses, predicted, images),
        "not there": colour_sets(model, poses, absent, images),
    }
    return draw_tiles(rows, [_listed(row, classes) for row in predicted])


@torch.no_grad()
def draw_inputs_and_outputs(model: Model, groups: Mapping[str, Tensor]) -> Figure:
    """Return images of single objects above their reconstructions from the winning capsule (Zhao et al. 2020, Table 4).

    Args:
        model: with a decoder; it is left in evaluation mode.
        groups: images [b, c, h, w] in [0, 1] that stand side by side, e.g. of "expanded MNIST" and of "affNIST".
    """
    titles = [name if n == len(images) // 2 else "" for name, images in groups.items() for n in range(len(images))]
    inputs = torch.cat(list(groups.values()))
    return draw_tiles({"input": inputs, "output": model.eval()(inputs).aux["reconstruction"]}, titles)


@torch.no_grad()
def draw_segmentations(
    model: Model,
    images: Tensor,
    targets: Tensor,
    predicted: Tensor,
    absent: int = 2,
    classes: Sequence[str] = (),
) -> Figure:
    """Return overlapped objects above their reconstructions, laid over each other in green and blue.

    As Table 5 of Zhao et al. 2020: above each column stand R, the classes that are decoded, the lower one in green, and
    L, those that the image shows. Decoded is what was predicted; where that is wrong it is marked P. The last columns,
    marked *, show the first `absent` images again, with a class that is neither shown nor predicted in place of one.

    Args:
        model: with a decoder; it is left in evaluation mode.
        images: [b, c, h, w] in [0, 1].
        targets, predicted: label sets, bool [b, classes].
        absent: images that are decoded with a class that is not there, at most.
        classes: their names; they are numbered where there are none.
    """
    output = model.eval()(images)
    neither = absent_class(output.scores, targets, predicted)
    again = neither.any(1).nonzero().flatten()[:absent]
    swapped = targets[again]
    swapped = swapped.scatter(1, swapped.long().argmax(1, keepdim=True), False) | neither[again]
    index = torch.cat([torch.arange(len(images), device=again.device), again]).to(images.device)
    sets, shown = torch.cat([predicted, swapped]), targets[index]
    marks = ["R" if right else "R:P" for right in (predicted == targets).all(1).tolist()] + ["*R"] * len(again)
    titles = [
        f"{mark}:({_listed(decoded, classes)})\nL:({_listed(labels, classes)})"
        for mark, decoded, labels in zip(marks, sets, shown, strict=True)
    ]
    decoded = colour_sets(model, output.capsules[-1].poses[index], sets, torch.zeros_like(images[index]))
    return draw_tiles({"input": images[index], "output": decoded}, titles)


def _listed(labels: Tensor, classes: Sequence[str]) -> str:
    """Return the classes of a label set, bool [classes], by name where there are names."""
    separator = ", " if classes else ","
    return separator.join(_named(each, classes) for each in labels.nonzero().flatten().tolist())


def _named(label: int, classes: Sequence[str]) -> str:
    return classes[label] if classes else str(label)
