"""Images decoded from capsules: of what the network saw, and of poses moved away from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

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
        steps: positions of each dimension, at least 2.

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
def draw_reconstructions(model: Model, images: Tensor, labels: Tensor, sweep: int = 0, rows: int = 6) -> Figure:
    """Images, below each its reconstruction from the winning capsule, and the pose sweep of one image.

    Args:
        model: with a decoder; it is left in evaluation mode.
        images: [b, c, h, w] in [0, 1]; labels int64 [b].
        sweep: index of the image whose pose is moved.
        rows: dimensions of the pose that are shown, those whose sweep changes the image most.
    """
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

    output = model.eval()(images)
    predicted = output.scores.argmax(1)
    frames = pose_sweep(model, images[sweep])  # [d, s, c, h, w]
    most = frames.std(1).flatten(1).mean(1).argsort(descending=True)[:rows]
    columns = max(len(images), frames.shape[1])
    figure = Figure(figsize=(columns * 0.62, (2 + rows) * 0.72), layout="constrained")
    grid = GridSpec(2 + rows, columns, figure=figure)

    def show(row: int, column: int, image: Tensor, title: str = "", label: str = "") -> None:
        axes = figure.add_subplot(grid[row, column])
        axes.imshow(image.movedim(0, -1).squeeze(-1).cpu(), cmap="gray_r", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, fontsize=7)
        axes.set_ylabel(label, fontsize=7)

    for n, image in enumerate(images):
        wrong = "" if predicted[n] == labels[n] else f", is {labels[n]}"
        show(0, n, image, f"{predicted[n]}{wrong}", "" if n else "input")
        show(1, n, output.aux["reconstruction"][n], label="" if n else "decoded")
    for row, dimension in enumerate(most.tolist()):
        for column, frame in enumerate(frames[dimension]):
            show(2 + row, column, frame, label="" if column else f"pose {dimension}")
    return figure
