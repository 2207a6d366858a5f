"""Images decoded from capsules: from every class's pose, and from poses moved away from what the network saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchcaps.inspect.pictures import colour_parts
from torchcaps.models import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@torch.no_grad()
def pose_sweep(model: Model, image: Tensor, reach: float = 0.25, steps: int = 11) -> Tensor:
    """Decode the winning capsule with one of its dimensions moved at a time (Sabour et al. 2017, figure 4).

    Args:
        model: with a decoder; it is left in evaluation mode.
        image: [c, h, w], as the model takes it.
        reach: how far a dimension is moved, to both sides; a pose is shorter than 1.
        steps: positions of each dimension, at least 2; an odd number has the pose itself in the middle.

    Returns:
        Images [d, steps, c, h, w] in [0, 1].
    """
    if steps < 2:
        raise ValueError(f"steps is {steps}; a sweep needs at least 2")
    output = model.eval()(image.unsqueeze(0))
    poses, chosen = output.capsules[-1].poses, output.scores.argmax(1)  # [1, j, d], [1]
    size = poses.shape[-1]
    offsets = torch.linspace(-reach, reach, steps, device=poses.device, dtype=poses.dtype)
    moves = torch.einsum("de,s->dse", torch.eye(size, device=poses.device, dtype=poses.dtype), offsets)
    moved = poses.repeat(size * steps, 1, 1)  # [(d s), j, d]
    moved[:, chosen.item()] += moves.flatten(0, 1)
    return model.reconstruct(moved, chosen.expand(len(moved))).unflatten(0, (size, steps))


@torch.no_grad()
def decode_classes(model: Model, poses: Tensor, classes: Tensor) -> Tensor:
    """Decode class capsules [b, j, d], each image's from every one of its `classes` int64 [b, k]: [b, k, c, h, w]."""
    k = classes.shape[1]
    return model.reconstruct(poses.repeat_interleave(k, 0), classes.flatten()).unflatten(0, (len(poses), k))


@torch.no_grad()
def draw_reconstructions(model: Model, images: Tensor, labels: Tensor, sweep: int = 0, rows: int = 6) -> Figure:
    """Return images, below each its reconstruction from the winning capsule, and the pose sweep of one image.

    Args:
        model: with a decoder; it is left in evaluation mode.
        images: [b, c, h, w] in [0, 1]; labels int64 [b].
        sweep: index of the image whose pose is moved.
        rows: dimensions of the pose that are shown, those whose sweep changes the image most.
    """
    from torchcaps.inspect.figures import draw_tiles

    output = model.eval()(images)
    predicted = output.scores.argmax(1).tolist()
    frames = pose_sweep(model, images[sweep])  # [d, s, c, h, w]
    most = frames.std(1).flatten(1).mean(1).argsort(descending=True)[:rows].tolist()
    titles = [f"{p}" if p == l else f"{p}, is {l}" for p, l in zip(predicted, labels.tolist(), strict=True)]
    tiles = {"input": images, "decoded": output.aux["reconstruction"]}
    return draw_tiles(tiles | {f"pose {dimension}": frames[dimension] for dimension in most}, titles)


@torch.no_grad()
def draw_overlaps(model: Model, images: Tensor, targets: Tensor, predicted: Tensor) -> Figure:
    """Return overlapped objects told apart: below each image what is decoded of it, each class in its own colour,
    over it.

    The rows are the input, the classes that it shows, those that the network found, and one that is not there: the
    likeliest of those that it neither shows nor was found to show (Sabour et al. 2017, figure 5).

    Args:
        model: with a decoder; it is left in evaluation mode.
        images: [b, c, h, w] in [0, 1].
        targets, predicted: label sets, bool [b, classes].
    """
    from torchcaps.inspect.figures import draw_tiles

    output = model.eval()(images)
    poses, absent = output.capsules[-1].poses, absent_class(output.scores, targets, predicted)
    rows = {
        "input": images,
        "shown": colour_sets(model, poses, targets, images),
        "found": colour_sets(model, poses, predicted, images),
        "not there": colour_sets(model, poses, absent, images),
    }
    names = [",".join(str(c) for c in row.nonzero().flatten().tolist()) for row in predicted]
    return draw_tiles(rows, names)


@torch.no_grad()
def draw_inputs_and_outputs(model: Model, groups: Mapping[str, Tensor]) -> Figure:
    """Return images of single objects above their reconstructions from the winning capsule (Zhao et al. 2020, Table 4).

    Args:
        model: with a decoder; it is left in evaluation mode.
        groups: images [b, c, h, w] in [0, 1] that stand side by side, e.g. of "expanded MNIST" and of "affNIST".
    """
    from torchcaps.inspect.figures import draw_tiles

    titles = [name if n == len(images) // 2 else "" for name, images in groups.items() for n in range(len(images))]
    inputs = torch.cat(list(groups.values()))
    return draw_tiles({"input": inputs, "output": model.eval()(inputs).aux["reconstruction"]}, titles)


@torch.no_grad()
def draw_segmentations(model: Model, images: Tensor, targets: Tensor, predicted: Tensor, absent: int = 2) -> Figure:
    """Return overlapped objects above their reconstructions, laid over each other in green and blue.

    As Table 5 of Zhao et al. 2020: above each column stand R, the classes that are decoded, the lower one in green, and
    L, those that the image shows. Decoded is what was predicted; where that is wrong it is marked P. The last columns,
    marked *, show the first `absent` images again, with a class that is neither shown nor predicted in place of one.

    Args:
        model: with a decoder; it is left in evaluation mode.
        images: [b, c, h, w] in [0, 1].
        targets, predicted: label sets, bool [b, classes].
        absent: images that are decoded with a class that is not there, at most.
    """
    from torchcaps.inspect.figures import draw_tiles

    output = model.eval()(images)
    neither = absent_class(output.scores, targets, predicted)
    again = neither.any(1).nonzero().flatten()[:absent]
    swapped = targets[again]
    swapped = swapped.scatter(1, swapped.long().argmax(1, keepdim=True), False) | neither[again]
    index = torch.cat([torch.arange(len(images), device=again.device), again]).to(images.device)
    sets, shown = torch.cat([predicted, swapped]), targets[index]
    marks = ["R" if right else "R:P" for right in (predicted == targets).all(1).tolist()] + ["*R"] * len(again)
    titles = [
        f"{mark}:{_listed(decoded)}\nL:{_listed(labels)}"
        for mark, decoded, labels in zip(marks, sets, shown, strict=True)
    ]
    decoded = colour_sets(model, output.capsules[-1].poses[index], sets, torch.zeros_like(images[index]))
    return draw_tiles({"input": images[index], "output": decoded}, titles)


def _listed(classes: Tensor) -> str:
    """Return the classes of a label set, bool [classes]."""
    return f"({','.join(map(str, classes.nonzero().flatten().tolist()))})"


def absent_class(scores: Tensor, targets: Tensor, predicted: Tensor) -> Tensor:
    """Return the class with the highest of scores [b, j] that is in neither label set, as a set, bool [b, j]: empty
    if none is left.
    """
    taken = targets.bool() | predicted.bool()
    highest = scores.masked_fill(taken, float("-inf")).argmax(1, keepdim=True)
    return torch.zeros_like(taken).scatter_(1, highest, True) & ~taken


def colour_sets(model: Model, poses: Tensor, sets: Tensor, images: Tensor) -> Tensor:
    """Return the classes of each label set [b, j], decoded from poses [b, j, d], in colours over the dim image: [b,
    3, h, w].

    The first class of a set has the first colour; `images` are [b, c, h, w] in [0, 1].
    """
    pictures = []
    for pose, row, image in zip(poses, sets, images, strict=True):
        classes = row.nonzero().flatten()
        decoded = decode_classes(model, pose[None], classes[None])  # [1, k, c, h, w]
        pictures.append(colour_parts(decoded, image[None]))
    return torch.cat(pictures)
