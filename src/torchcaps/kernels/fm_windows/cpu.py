"""The sums on CPU: one child of a few positions at a time, 16 parents side by side in a vector. See README.md."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from torchcaps.kernels.fm_windows.loops import backward_loop, forward_loop
from torchcaps.kernels.lanes import arrays, rooms
from torchcaps.kernels.simd import LANES
from torchcaps.kernels.threads import ranges, run
from torchcaps.kernels.windows import parents_from_lanes, parents_to_lanes, window_places

__all__ = ["backward", "forward"]

TOGETHER = 8  # positions at a time: whole fours of rows, few enough that what belongs to their parents stays near


def forward(
    poses: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    rows: int,
    stride: int,
    padding: int,
    l2: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """See `op.fm_window_sums`; contiguous inputs of one type."""
    inputs, source = _inputs(poses, weight, scale, shift, rows, stride, padding)
    shape = len(poses), len(source), weight.shape[0], rows * weight.shape[-1]
    outs = [poses.new_empty(shape) for _ in range(2)]
    into = arrays(*(out.flatten(0, 1) for out in outs))

    def work(_: int, first: int, end: int) -> None:
        u, votes, *sums = _rooms(inputs[1], rows, 1, 3)
        forward_loop(*inputs, source, rows, TOGETHER, l2, eps, first, end, *into, u, votes, *sums)

    run(work, ranges(len(poses) * len(source)))
    return outs[0], outs[1]


def backward(
    of_total: Tensor,
    of_squares: Tensor,
    poses: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    rows: int,
    stride: int,
    padding: int,
    l2: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return gradients for poses, weight, scale and shift. Threads take whole images, since windows of one image share
    children.
    """
    inputs, source = _inputs(poses, weight, scale, shift, rows, stride, padding)
    given, spans = arrays(of_total.flatten(0, 1), of_squares.flatten(0, 1)), ranges(len(poses))
    children, places = torch.zeros_like(poses), len(source)
    # of each thread: what is a sum over images
    weights, *affine = (poses.new_zeros(len(spans), *x.shape) for x in inputs[1:])

    def work(part: int, first: int, end: int) -> None:
        into = arrays(children.flatten(1, 2), weights[part], *(x[part] for x in affine))
        u, d_u, *parents = _rooms(inputs[1], rows, 2, 3)
        span = first * places, end * places
        backward_loop(*given, *inputs, source, rows, TOGETHER, l2, eps, *span, *into, u, d_u, *parents)

    run(work, spans)
    parents, pose = weight.shape[0], rows * weight.shape[-1]
    d_affine = [_pairs_from_lanes(x.sum(0), parents, weight.shape[-1]) for x in affine]
    d_scale, d_shift = (x[..., :pose].sum_to_size(scale.shape) for x in d_affine)
    return children, parents_from_lanes(weights.sum(0), weight.shape), d_scale, d_shift


def _inputs(
    poses: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, rows: int, stride: int, padding: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return children [b, places, n, r c], weight in lanes, scale and shift in lanes; then see `window_places`."""
    parents, m = weight.shape[0], weight.shape[-1]
    affine = (_pairs_to_lanes(x, parents, rows, m) for x in (scale, shift))
    source = window_places(*poses.shape[1:3], *weight.shape[1:3], stride, padding)
    return arrays(poses.flatten(1, 2), parents_to_lanes(weight), *affine), source


def _pairs_to_lanes(x: Tensor, parents: int, rows: int, m: int) -> Tensor:
    """Map [i | 1, j | 1, r m] -> [i | 1, j / 16, r, m, 16], with m and j filled up to 2 and 16 by zeros."""
    each = x.expand(-1, parents, -1).unflatten(-1, (rows, m))
    padded = F.pad(each, (0, m % 2, 0, 0, 0, -parents % LANES))
    return padded.unflatten(1, (-1, LANES)).movedim(2, -1).contiguous()


def _pairs_from_lanes(lanes: Tensor, parents: int, m: int) -> Tensor:
    """Map the way back, to [i | 1, j, r m]."""
    return lanes.movedim(-1, 2).flatten(1, 2)[:, :parents, :, :m].flatten(2)


def _rooms(weight: np.ndarray, rows: int, children: int, parents: int) -> list[np.ndarray]:
    """Return what a thread's loops work in, for the positions that are taken together: so many arrays of a child's
    poses, and of what has a number for each element of the parents; 0 at first.
    """
    _, blocks, columns, m, lanes = weight.shape
    shapes = [(TOGETHER * rows, columns)] * children + [(blocks, TOGETHER * rows, m, lanes)] * parents
    space = rooms(weight, *shapes)
    for each in space:
        each.fill(0)
    return space
