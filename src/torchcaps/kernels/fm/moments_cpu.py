"""Mean and variance of every pair's votes over the images on CPU, of Gram matrices; no vote is made. See README.md.

Of one child, the rows of its Gram matrix and its mean pose go through W like the poses of so many images: the mean
gives the mean vote, and row e the product with W of which the variance takes its part e. So lanes are images until
`_summary` has made the Gram matrix G, and columns e of a child's pose after it, the last of which is followed by the
mean: `half[e // 16, s, e % 16]` is (G W)[e, s], and lane `columns` has the mean vote.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from torchcaps.kernels.lanes import BLOCK, arrays, back, blocks, clear, gather, outer, rooms, scatter, vote
from torchcaps.kernels.simd import LANES, broadcast, compiled, load, store, subroutine, total, zeros
from torchcaps.kernels.threads import ranges, run

GROUP = 8  # children that are gathered at once


def forward(poses: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """See `op.fm_moments`; contiguous inputs of one type."""
    pose = poses.shape[2] // weight.shape[2] * weight.shape[3]
    outs = [poses.new_empty(weight.shape[1], weight.shape[0], pose) for _ in range(2)]
    inputs = arrays(poses, weight, _mask(poses), *outs)
    run(
        lambda _, first, end: _forward(*inputs, first, end, *_rooms(inputs[0], inputs[1], False)),
        ranges(weight.shape[1]),
    )
    return outs[0], outs[1]


def backward(of_mean: Tensor, of_variance: Tensor, poses: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradients for poses and weight."""
    outs = torch.empty_like(poses), torch.empty_like(weight)
    inputs = arrays(of_mean, of_variance, poses, weight, _mask(poses), *outs)
    run(
        lambda _, first, end: _backward(*inputs, first, end, *_rooms(inputs[2], inputs[3], True)),
        ranges(weight.shape[1]),
    )
    return outs


def _rooms(poses: np.ndarray, weight: np.ndarray, back: bool) -> list[np.ndarray]:
    """Return what the loops work in: a block, children, centred ones, their mean and Gram matrix, its summary, and the
    half of a product; for the way back the changes of the last two as well, a vector and the changes of one more half.
    """
    images, _, size = poses.shape
    columns, m = weight.shape[2:]
    rows, parts, along = size // columns, blocks(images), columns // LANES + 1
    centred, summary = (rows, parts, columns, LANES), (rows, along, columns, LANES)
    shapes = [BLOCK, (GROUP, parts, size, LANES), centred, (rows, columns), (columns, columns), summary]
    shapes.append((along, m, LANES))
    return rooms(poses, *shapes, *([summary, (columns,), (along, m, LANES)] if back else []))


def _mask(poses: Tensor) -> Tensor:
    """Return 1 for an image, 0 beside the last, [blocks, 16]."""
    images = poses.shape[0]
    mask = poses.new_zeros(blocks(images) * LANES)
    mask[:images] = 1
    return mask.view(-1, LANES)


@subroutine
def _summary(u, mask, images, rows, columns, centred, mean, gram, out):
    """Take from one child u [blocks, rows * columns, 16]: centred poses [rows, blocks, columns, 16], mean [rows,
    columns], and out [rows, parts, columns, 16], lane e of which is row e of the Gram matrix, lane `columns` the
    mean.
    """
    parts = u.shape[0]
    clear(out, 0, rows * (columns // LANES + 1) * columns)
    for r in range(rows):
        for c in range(columns):
            k = r * columns + c
            whole = zeros(u)
            for n in range(parts):
                whole = whole + load(u, (n * rows * columns + k) * LANES)
            mean[r, c] = total(whole) / images
            for n in range(parts):  # masked: what is not there is 0, and less the mean it would count
                x = (load(u, (n * rows * columns + k) * LANES) - broadcast(mean, k)) * load(mask, n * LANES)
                store(centred, ((r * parts + n) * columns + c) * LANES, x)
        outer(centred[r], 0, centred[r], parts, 1, columns, columns, gram, 0)  # sum_b (u - mean)' (u - mean)
        for c in range(columns):
            for e in range(columns):  # symmetric, so that a row may stand where a column is read
                out[r, e // LANES, c, e % LANES] = gram[c, e] / images
            out[r, columns // LANES, c, columns % LANES] = mean[r, c]


@subroutine
def _through(summary, r, weight, to, columns, m, out):
    """Compute: out [parts, m, 16] = the rows of a summary through W."""
    parts = summary.shape[1]
    for q in range(parts):
        vote(summary, (r * parts + q) * columns * LANES, weight, to, 1, columns, m, out, q * m * LANES, False)


@compiled
def _forward(poses, weight, mask, out_mean, out_variance, first, end, block, u, centred, mean, gram, summary, half):
    """Take the moments of the children from `first` to `end`, [i, j, d] each."""
    images, _, size = poses.shape
    parents, children, columns, m = weight.shape
    rows = size // columns
    for start in range(first, end, GROUP):
        count = min(GROUP, end - start)
        gather(poses, start, count, u, block)
        for i in range(start, start + count):
            _summary(u[i - start], mask, images, rows, columns, centred, mean, gram, summary)
            for j in range(parents):
                for r in range(rows):
                    _through(summary, r, weight, (j * children + i) * columns * m, columns, m, half)
                    for s in range(m):  # variance_s = sum_e W[e, s] (G W)[e, s]; 0 where rounding has left less
                        variance = poses.dtype.type(0)
                        for e in range(columns):
                            variance += half[e // LANES, s, e % LANES] * weight[j, i, e, s]
                        out_mean[i, j, r * m + s] = half[columns // LANES, s, columns % LANES]
                        out_variance[i, j, r * m + s] = max(variance, poses.dtype.type(0))


@compiled
def _backward(
    of_mean,
    of_variance,
    poses,
    weight,
    mask,
    out_poses,
    out_weight,
    first,
    end,
    block,
    u,
    centred,
    mean,
    gram,
    summary,
    half,
    change,
    constant,
    dv,
):
    """Compute: gradients of the children from `first` to `end`."""
    images, _, size = poses.shape
    parents, children, columns, m = weight.shape
    rows = size // columns
    clear(dv, 0, (columns // LANES + 1) * m)
    for start in range(first, end, GROUP):
        count = min(GROUP, end - start)
        gather(poses, start, count, u, block)
        for i in range(start, start + count):
            _summary(u[i - start], mask, images, rows, columns, centred, mean, gram, summary)
            clear(change, 0, rows * (columns // LANES + 1) * columns)
            for j in range(parents):
                to = (j * children + i) * columns * m
                for e in range(columns):
                    for s in range(m):
                        out_weight[j, i, e, s] = 0
                for r in range(rows):
                    _through(summary, r, weight, to, columns, m, half)
                    for s in range(m):
                        g, h = of_mean[i, j, r * m + s], of_variance[i, j, r * m + s]
                        # what comes back through W: of the mean's lane g, of lane e h W[e, s]
                        dv[columns // LANES, s, columns % LANES] = g
                        for e in range(columns):  # dW = mean' g + 2 (G W) h
                            dv[e // LANES, s, e % LANES] = h * weight[j, i, e, s]
                            out_weight[j, i, e, s] += mean[r, e] * g + 2 * h * half[e // LANES, s, e % LANES]
                    # change += dv W': dG[., e] = sum_js h W[., s] W[e, s] in lane e, and the gradient of the mean pose
                    for q in range(len(half)):
                        at = (r * len(half) + q) * columns * LANES
                        back(dv, q * m * LANES, weight, to, 1, columns, m, change, at)
            _children(change, centred, images, gram, constant, u[i - start])
        scatter(u, start, count, out_poses, block)


@subroutine
def _children(change, centred, images, matrix, constant, out):
    """Compute: gradient of one child's poses, [blocks, rows * columns, 16], of that of its summary."""
    rows, parts, columns, _ = centred.shape
    for r in range(rows):
        # du = dmean / b + 2 / b (u - mean) dG, of which the first is the same for all images
        for c in range(columns):
            constant[c] = change[r, columns // LANES, c, columns % LANES] / images
            for e in range(columns):
                matrix[e, c] = 2 * change[r, e // LANES, c, e % LANES] / images
        for n in range(parts):
            into = (n * rows + r) * columns * LANES
            for c in range(columns):
                store(out, into + c * LANES, zeros(out) + broadcast(constant, c))
            vote(centred, (r * parts + n) * columns * LANES, matrix, 0, 1, columns, columns, out, into, True)
