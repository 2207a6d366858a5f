"""Images decoded from capsules: from every class's pose, and from poses moved away from what the network saw."""

from __future__ import annotations

import torch
from torch import Tensor

from torchcaps.inspect.pictures import colour_parts
from torchcaps.models import Model


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
