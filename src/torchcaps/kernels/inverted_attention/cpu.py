"""The step on CPU: one child of a few positions at a time, 16 parents side by side in a vector. See README.md.

A vector is 16 parents of one element, so that weights are read as they lie, softmax is a sum over lanes, and a child
is a number that all of them take. A weight that was read serves the rows of several positions. Sums are in float32, or
in float64 where an input is. Where there is one position, the step may be that of dynamic routing, which has images
side by side.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from torchcaps.kernels.dynamic import cpu as linear
from torchcaps.kernels.inverted_attention.loops import backward_loop, forward_loop
from torchcaps.kernels.lanes import arrays, fill_lanes
from torchcaps.kernels.threads import ranges, run
from torchcaps.kernels.types import widest
from torchcaps.kernels.windows import parents_from_lanes, parents_to_lanes, window_places

FEW, MANY = 8, 32  # positions at a time: whole fours of rows; many where the weights are too large for the cache
CACHE = 2**20  # bytes of a core's own cache


def forward(
    poses: Tensor, weight: Tensor, query: Tensor, rows: int, stride: int, padding: int, xnor: bool, binary: bool
) -> Tensor:
    """See `op.attend`."""
    if fill_lanes(poses, weight, padding):
        return linear.forward(*_alone(poses, weight, query), None, xnor, binary).view(query.shape)
    inputs, source, together = _inputs(poses, weight, query, stride, padding)
    out, flags = torch.empty_like(inputs[2]), (xnor or None, binary or None)
    run(
        lambda _, first, end: forward_loop(*arrays(*inputs), source, rows, together, *flags, first, end, out.numpy()),
        ranges(len(out)),
    )
    return out.view(query.shape)


def backward(
    gradient: Tensor,
    poses: Tensor,
    weight: Tensor,
    query: Tensor,
    rows: int,
    stride: int,
    padding: int,
    xnor: bool,
    binary: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `op.attend_backward`. Threads take whole images, since windows of one image share children."""
    if fill_lanes(poses, weight, padding):
        inputs = _alone(poses, weight, query)
        gradient = gradient.to(inputs[2].dtype).reshape(inputs[2].shape).contiguous()
        of_poses, of_weight, of_query, _ = linear.backward(gradient, *inputs, None, xnor, binary, last=False)
        assert of_query is not None
        return of_poses.view(poses.shape), of_weight.view(weight.shape), of_query.view(query.shape)
    inputs, source, together = _inputs(poses, weight, query, stride, padding)
    gradient = gradient.to(inputs[2].dtype).reshape(inputs[2].shape).contiguous()
    spans, places, flags = ranges(len(poses)), len(source), (xnor or None, binary or None)
    children, parents = torch.zeros_like(inputs[0]), torch.empty_like(inputs[2])
    weights = inputs[1].new_zeros(len(spans), *inputs[1].shape)  # of each thread

    def work(part: int, first: int, end: int) -> None:
        into, span = arrays(children, weights[part], parents), (first * places, end * places)
        backward_loop(*arrays(gradient, *inputs), source, rows, together, *flags, *span, *into)

    run(work, spans)
    return children.view(poses.shape), parents_from_lanes(weights.sum(0), weight.shape), parents.view(query.shape)


def _alone(poses: Tensor, weight: Tensor, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same as of a linear layer, [b, i, r c], [j, i, c, m] and [b, j, d]."""
    wide = widest(poses, weight, query, at_least=torch.float32)
    found = poses.flatten(1, 3), weight.flatten(1, 3), query.flatten(0, 1)
    return tuple(x.to(wide).contiguous() for x in found)  # pyright: ignore[reportReturnType]


def _inputs(
    poses: Tensor, weight: Tensor, query: Tensor, stride: int, padding: int
) -> tuple[tuple[Tensor, Tensor, Tensor], np.ndarray, int]:
    """Return children [b, places, n, r c], weight in lanes and query [positions, j, d]; then see `window_places`,
    and FEW.
    """
    _, height, width, _, _ = poses.shape
    wide = widest(poses, weight, query, at_least=torch.float32)
    lanes = parents_to_lanes(weight.to(wide))
    inputs = poses.to(wide).flatten(1, 2).contiguous(), lanes, query.to(wide).flatten(0, 1).contiguous()
    source = window_places(height, width, *weight.shape[1:3], stride, padding)
    return inputs, source, FEW if lanes.nbytes <= CACHE else MANY
