"""Votes of a few images, for passes without gradient: made once, 16 children side by side in a vector, and kept.

Few are images whose votes are smaller than the weights, so that reading these is most of the time. Weights [j, i, c, d]
are read once, as they lie, for all images: a vote is a sum over c of a number of the child and 16 elements of a row.
Those of 16 children are then transposed in registers, so that what follows, agreements, softmax and sums over
children, is plain arithmetic on vectors. Importing this module imports numba.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from torchcaps.kernels.lanes import arrays, blocks, rooms
from torchcaps.kernels.simd import (
    LANES,
    broadcast,
    compiled,
    load,
    magnitude,
    select,
    store,
    subroutine,
    transpose,
    zeros,
)
from torchcaps.kernels.threads import ranges, run

WORTH_A_THREAD = 2**18  # numbers of the weights


def votes_of_few(poses: Tensor, weight: Tensor, binary: bool = False, midpoint: bool = False) -> np.ndarray:
    """Return votes [images, blocks of 16 children, j, d, 16], zeros beyond the last child.

    Args:
        poses: [b, i, c], contiguous, at least one image.
        weight: [j, i, c, d] of the same type, float32 or float64, contiguous, d a multiple of 16.
        binary: whether children and weights count as signs times their mean size over c (XnODR).
        midpoint: whether signs then are of what lies above the middle between the smallest and the largest number: of
            an image's poses, and of the weights of one element of one parent.
    """
    parents, children, columns, pose = weight.shape
    (u, w), images = arrays(poses, weight), len(poses)
    sizes = np.empty((images, children), u.dtype)
    if binary:
        signs = np.empty_like(u)
        _binarize(u, midpoint, signs, sizes)
        u = signs
    out = np.empty((images, blocks(children), parents, pose, LANES), u.dtype)
    spans = ranges(parents, max(1, WORTH_A_THREAD // (children * columns * pose)))

    def work(_: int, first: int, end: int) -> None:
        _votes(u, sizes, w, binary, midpoint, first, end, out, *rooms(u, (LANES, pose), (pose,)))

    run(work, spans)
    return out


@compiled
def _binarize(poses, midpoint, signs, sizes):
    """Compute: signs [b, i, c] of the children, and their mean sizes [b, i]."""
    images, children, columns = poses.shape
    for n in range(images):
        middle = poses.dtype.type(0)
        if midpoint:
            low = high = poses[n, 0, 0]
            for i in range(children):
                for c in range(columns):
                    low, high = min(low, poses[n, i, c]), max(high, poses[n, i, c])
            middle = (low + high) / 2
        for i in range(children):
            size = poses.dtype.type(0)
            for c in range(columns):
                x = poses[n, i, c]
                size += abs(x)
                signs[n, i, c] = 1 if x > middle else -1
            sizes[n, i] = size / columns


@compiled
def _votes(u, sizes, weight, binary, midpoint, first, end, out, near, middles):
    """Compute: the votes for the parents from `first` to `end`.

    `near` [16, d] has those of 16 children of one image for one parent, as they are made.
    """
    parents, children, columns, pose = weight.shape
    images, groups = out.shape[0], out.shape[1]
    for j in range(first, end):
        _middles(weight, j, midpoint, middles)
        for group in range(groups):
            start = group * LANES
            count = min(LANES, children - start)
            for n in range(images):
                for k in range(count):
                    child = start + k
                    at, to = (n * children + child) * columns, (j * children + child) * columns * pose
                    if binary:
                        _binary_vote(u, at, weight, to, columns, pose, middles, sizes, n * children + child, near, k)
                    else:
                        _vote(u, at, weight, to, columns, pose, near, k)
                for k in range(count * pose, LANES * pose, LANES):
                    store(near, k, zeros(near))
                into = ((n * groups + group) * parents + j) * pose * LANES
                for d in range(0, pose, LANES):  # 16 children of 16 elements each become 16 elements of 16 children
                    transpose(near, d, pose, out, into + d * LANES, LANES)


@subroutine
def _middles(weight, parent, midpoint, out):
    """Compute: what signs of weights are taken of, [d]: 0, or the middle over all children and c."""
    _, children, columns, pose = weight.shape
    half = weight.dtype.type(0.5)
    begin = parent * children * columns * pose
    for d in range(0, pose, LANES):
        low = high = load(weight, begin + d)
        if midpoint:
            for k in range(begin + d, begin + children * columns * pose, pose):
                x = load(weight, k)
                low, high = select(low, x, x, low), select(x, high, x, high)
        store(out, d, (low + high) * half if midpoint else zeros(out))


@subroutine
def _vote(u, at, weight, to, columns, pose, out, row):
    """Compute: row `row` of out [16, d] = sum over c of u[c] w[c], of `u` from `at` and `weight` from `to` on."""
    for d in range(0, pose, LANES):
        vote = zeros(out)
        for c in range(columns):
            vote = vote + broadcast(u, at + c) * load(weight, to + c * pose + d)
        store(out, row * pose + d, vote)


@subroutine
def _binary_vote(u, at, weight, to, columns, pose, middles, sizes, child, out, row):
    """Compute: the same of signs, of which sums are exact, times the mean sizes of the child and of each column."""
    scale = broadcast(sizes, child) / out.dtype.type(columns)
    for d in range(0, pose, LANES):
        middle = load(middles, d)
        vote = size = zeros(out)
        for c in range(columns):
            w, x = load(weight, to + c * pose + d), broadcast(u, at + c)
            vote = vote + select(w, middle, x, zeros(out) - x)
            size = size + magnitude(w)
        store(out, row * pose + d, vote * (size * scale))
