"""All iterations of dynamic routing on the votes of a few images, without gradient. See README.md.

Importing this module imports numba.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from torchcaps.kernels.dynamic.cpu import agreement, share
from torchcaps.kernels.lanes import clear, join, rooms, softmax
from torchcaps.kernels.simd import LANES, compiled, load, store, subroutine, zeros

SMALLEST = 1e-24  # of a squared length, as in `torchcaps.capsules.squash`


def spaces(parents: int, pose: int) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of what `route_votes` works in, for `kernels.lanes.rooms`: sums, state and coupling."""
    return (parents, pose, LANES), (parents, pose, LANES), (parents, LANES)


def route_few(votes: np.ndarray, bias: np.ndarray | None, xnor: bool, iterations: int) -> tuple[Tensor, Tensor]:
    """Return parents [b, j, d] after `iterations`, at least 1, and what the routing carries on, [b, j, d].

    Args:
        votes: [b, blocks of 16 children, j, d, 16], see `kernels.few`.
        bias: of the parents, [j, d]; None for 0.
        xnor: whether signs of votes are compared, and recalled of outputs (XnIDR).
    """
    images, _, parents, pose, _ = votes.shape
    if bias is None or bias.shape != (parents, pose):  # the loop reads unchecked
        bias = np.broadcast_to(votes.dtype.type(0) if bias is None else bias, (parents, pose)).copy()
    out = np.empty((2, images, parents, pose), votes.dtype)
    _route(votes, bias, xnor or None, iterations, out[0], out[1], *rooms(votes, *spaces(parents, pose)))
    found = torch.from_numpy(out)
    return found[0], found[1]


@compiled
def _route(votes, bias, xnor, iterations, out, carried, sums, state, coupling):
    route_votes(votes, bias, xnor, iterations, out, carried, sums, state, coupling)


@subroutine
def route_votes(votes, bias, xnor, iterations, out, carried, sums, state, coupling):
    """Compute: out and carried, [b, j, d], see `route_few`.

    In `sums` each lane is over its own children, in `state` all are equal.
    """
    images, groups, parents, pose, _ = votes.shape
    one = zeros(votes) + votes.dtype.type(1)
    first = zeros(votes) + votes.dtype.type(1 / parents)
    for n in range(images):
        clear(state, 0, parents * pose)
        for t in range(iterations):
            clear(sums, 0, parents * pose)
            for j in range(parents):
                store(coupling, j * LANES, first)
            for group in range(groups):
                here = votes[n, group]
                if t > 0:
                    for j in range(parents):
                        k = j * pose * LANES
                        store(coupling, j * LANES, agreement(here, k, state, k, pose, xnor))
                    softmax(coupling, 0, parents, one)
                share(here, coupling, sums, 0)
            for j in range(parents):
                _squash(sums, bias, n, j, xnor, out, carried, state)


@subroutine
def _squash(sums, bias, image, parent, xnor, out, carried, state):
    """Compute: a parent of its sums, and what it adds to `state`, in all lanes, of which `carried` has one."""
    _, parents, pose = out.shape
    number = bias.dtype.type
    begin = (image * parents + parent) * pose
    join(sums, parent * pose, pose, out, begin)
    square = number(0)
    for d in range(pose):
        out[image, parent, d] += bias[parent, d]
        square += out[image, parent, d] * out[image, parent, d]
    factor = square / (number(1) + square) / np.sqrt(max(square, number(SMALLEST)))
    size = number(0)
    for d in range(pose):
        out[image, parent, d] *= factor
        size += abs(out[image, parent, d])
    size /= number(pose)
    for d in range(pose):
        x = out[image, parent, d]
        k = (parent * pose + d) * LANES
        if xnor is not None:
            x = size if x > 0 else -size
        store(state, k, load(state, k) + x)
        carried[image, parent, d] = state[parent, d, 0]
