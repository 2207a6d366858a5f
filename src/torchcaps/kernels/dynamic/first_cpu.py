"""The first iteration on CPU, where every child shares itself evenly: the sum of all votes.

How arrays lie, and what runs in a thread, is as in `cpu.py`; the division by the number of parents is the caller's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchcaps.kernels.lanes import (
    BLOCK,
    arrays,
    back,
    blocks,
    clear,
    from_lanes,
    gather,
    outer,
    rooms,
    scatter,
    to_lanes,
    votes_of,
)
from torchcaps.kernels.simd import LANES, compiled, load, store
from torchcaps.kernels.threads import ranges, run

GROUP = 8  # children that are gathered at once


def forward(poses: Tensor, weight: Tensor) -> Tensor:
    """Return sum_i v [b, j, d] of poses [b, i, rows * columns] and weight [j, i, columns, m]."""
    images, children, size = poses.shape
    pose = size // weight.shape[2] * weight.shape[3]
    spans = ranges(children)
    parts = poses.new_zeros(len(spans), blocks(images), weight.shape[0], pose, LANES)
    inputs, into = arrays(poses, weight), parts.numpy()
    lanes = (GROUP, blocks(images), size, LANES)

    def work(part: int, first: int, end: int) -> None:
        _forward(*inputs, first, end, into[part], *rooms(into, BLOCK, lanes))

    run(work, spans)
    return from_lanes(parts.sum(0), images)


def backward(gradient: Tensor, poses: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradients of poses and weight."""
    outs = torch.empty_like(poses), torch.empty_like(weight)
    inputs = arrays(poses, weight, to_lanes(gradient), *outs)
    images, children, size = poses.shape
    lanes = (GROUP, blocks(images), size, LANES)
    of_votes = (weight.shape[0], blocks(images), gradient.shape[2], LANES)

    def work(_: int, first: int, end: int) -> None:
        _backward(*inputs, first, end, *rooms(inputs[0], BLOCK, lanes, lanes, of_votes))

    run(work, ranges(children))
    return outs


@compiled
def _forward(poses, weight, first, end, out, block, u):
    """Compute: out [blocks, j, d, 16] += votes of the children from `first` to `end`."""
    parts, parents, pose, _ = out.shape
    size = poses.shape[2]
    for start in range(first, end, GROUP):
        count = min(GROUP, end - start)
        gather(poses, start, count, u, block)
        for n in range(parts):
            for i in range(count):
                at, into = (i * parts + n) * size * LANES, n * parents * pose * LANES
                # s_j += u_i W_ij: no vote is stored at all, a product is added to what is there
                votes_of(u, at, weight, start + i, size // weight.shape[2], out, into, True)


@compiled
def _backward(poses, weight, gradient, out_poses, out_weight, first, end, block, u, du, dv):
    """Compute: gradients of the children from `first` to `end`: dv_ij = g_j whatever the child."""
    parents, children, columns, m = weight.shape
    parts, _, pose, _ = gradient.shape
    size = poses.shape[2]
    rows = size // columns
    # dv has parents first: the same for every child
    for n in range(parts):
        for j in range(parents):
            to, at = (j * parts + n) * pose * LANES, (n * parents + j) * pose * LANES
            for k in range(0, pose * LANES, LANES):
                store(dv, to + k, load(gradient, at + k))
    for start in range(first, end, GROUP):
        count = min(GROUP, end - start)
        gather(poses, start, count, u, block)
        clear(du, 0, count * parts * size)
        for i in range(count):
            for j in range(parents):
                at, to = i * parts * size * LANES, (j * children + start + i) * columns * m
                back(dv, j * parts * pose * LANES, weight, to, parts * rows, columns, m, du, at)  # du_i += g_j W_ij'
                outer(u, at, dv[j], parts, rows, columns, m, out_weight, to)  # dW_ij = sum_b u_i' g_j
        scatter(du, start, count, out_poses, block)
