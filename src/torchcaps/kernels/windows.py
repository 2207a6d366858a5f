"""What fused steps on windows of children share: votes for 16 parents side by side in a vector.

A vector is 16 parents of one element, so that weights are read as they lie, a softmax is a sum over lanes, and a child
is a number that all of them take. Weights are [i, blocks, c, m, 16] for every child i of a window. `u` is a child of
the positions at hand, [positions * rows, c], zeros where a window leaves the image. What is [blocks, positions * rows,
m, 16] are votes, or what belongs to the parents; parents beyond the last are zeros. Arrays are contiguous; a place in
one is counted through all its dimensions. Importing this module imports numba.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from torchcaps.kernels.simd import (
    LANES,
    broadcast,
    exp,
    highest,
    load,
    select,
    store,
    store_totals,
    subroutine,
    total,
    zeros,
)


def parents_to_lanes(weight: Tensor) -> Tensor:
    """Map [j, kh, kw, n, c, m] -> [(kh kw n), j / 16, c, m, 16], with c, m and j filled up to 4, 2 and 16."""
    j, *_, c, m = weight.shape
    padded = F.pad(weight, (0, m % 2, 0, -c % 4) + (0, 0) * 3 + (0, -j % LANES))
    return padded.unflatten(0, (-1, LANES)).flatten(2, 4).permute(2, 0, 3, 4, 1).contiguous()


def parents_from_lanes(lanes: Tensor, shape: torch.Size) -> Tensor:
    j, kh, kw, n, c, m = shape
    weight = lanes.permute(1, 4, 0, 2, 3).flatten(0, 1)[:j, :, :c, :m]
    return weight.reshape(j, kh, kw, n, c, m)


@lru_cache(maxsize=64)
def window_places(height: int, width: int, kh: int, kw: int, stride: int, padding: int) -> np.ndarray:
    """Return for each position and kernel offset the place y * width + x of the child, or -1 outside the image."""
    along = []
    for size, k in ((height, kh), (width, kw)):
        first = np.arange((size + 2 * padding - k) // stride + 1)[:, None] * stride - padding
        place = first + np.arange(k)
        along.append(np.where((place >= 0) & (place < size), place, -1))
    y, x = along[0][:, None, :, None], along[1][None, :, None, :]
    return np.ascontiguousarray(np.where((y >= 0) & (x >= 0), y * width + x, -1).reshape(-1, kh * kw))


@subroutine
def take_parents(x, start, count, rows, out):
    """Compute: x [positions, j, rows * m] -> out; positions beyond `count` are zeros."""
    _, parents, pose = x.shape
    m = pose // rows
    for t in range(out.shape[1] // rows):
        for j in range(parents):
            for r in range(rows):
                for s in range(m):
                    value = x[start + t, j, r * m + s] if t < count else 0
                    out[j // LANES, t * rows + r, s, j % LANES] = value


@subroutine
def give_parents(x, start, count, rows, out):
    """Compute: the way back: x [blocks, positions * rows, m, 16] -> out [positions, j, d]."""
    _, parents, pose = out.shape
    m = pose // rows
    for t in range(count):
        for j in range(parents):
            for r in range(rows):
                for s in range(m):
                    out[start + t, j, r * m + s] = x[j // LANES, t * rows + r, s, j % LANES]


@subroutine
def take_child(poses, source, start, count, k, n, rows, u):
    """Compute: child n at offset k of the windows of the positions from `start` on; absent ones are zeros."""
    columns = poses.shape[3] // rows
    for t in range(u.shape[0] // rows):
        image, position = divmod(start + t, source.shape[0])
        place = source[position, k] if t < count else -1
        if place < 0:
            for r in range(rows):
                for c in range(u.shape[1]):
                    u[t * rows + r, c] = 0
            continue
        for r in range(rows):
            for c in range(columns):
                u[t * rows + r, c] = poses[image, place, n, r * columns + c]


@subroutine
def give_child(d_u, source, start, count, k, n, rows, d_poses):
    """Add the gradient of `take_child`'s result to that of the children."""
    columns = d_poses.shape[3] // rows
    for t in range(count):
        image, position = divmod(start + t, source.shape[0])
        place = source[position, k]
        if place >= 0:
            for r in range(rows):
                for c in range(columns):
                    d_poses[image, place, n, r * columns + c] += d_u[t * rows + r, c]


@subroutine
def make_votes(u, weight, child, votes):
    """Compute: votes = u W of one child, four rows by two columns at a time."""
    blocks, height, m, _ = votes.shape
    columns = u.shape[1]
    for x in range(blocks):
        w = (child * blocks + x) * columns * m * LANES
        for r in range(0, height, 4):
            for s in range(0, m, 2):
                # eight sums: a_k and b_k are elements s and s + 1 of row r + k of the votes for 16 parents
                a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = zeros(votes)
                for c in range(columns):  # v[r, s] = sum_c u[r, c] W[c, s]: two vectors of W serve four rows of u
                    left, right = load(weight, w + (c * m + s) * LANES), load(weight, w + (c * m + s + 1) * LANES)
                    k = r * columns + c  # of u[r, c]; rows r + 1 to r + 3 stand `columns` further on each
                    y = broadcast(u, k)
                    a0, b0 = a0 + y * left, b0 + y * right
                    y = broadcast(u, k + columns)
                    a1, b1 = a1 + y * left, b1 + y * right
                    y = broadcast(u, k + 2 * columns)
                    a2, b2 = a2 + y * left, b2 + y * right
                    y = broadcast(u, k + 3 * columns)
                    a3, b3 = a3 + y * left, b3 + y * right
                k = ((x * height + r) * m + s) * LANES  # of votes[x, r, s]; the next row is `step` further on
                step = m * LANES
                store(votes, k, a0)
                store(votes, k + LANES, b0)
                store(votes, k + step, a1)
                store(votes, k + step + LANES, b1)
                store(votes, k + 2 * step, a2)
                store(votes, k + 2 * step + LANES, b2)
                store(votes, k + 3 * step, a3)
                store(votes, k + 3 * step + LANES, b3)


@subroutine
def softmax(coupling, at, blocks):
    """Compute: in place, over the numbers of `blocks` vectors from `at` on."""
    end = at + blocks * LANES
    # lane by lane over the blocks, then once over the lanes: the largest logit, which exp is taken relative to
    top = load(coupling, at)
    for k in range(at + LANES, end, LANES):
        logit = load(coupling, k)
        top = select(logit, top, logit, top)
    most, whole = highest(top), zeros(coupling)
    for k in range(at, end, LANES):
        e = exp(load(coupling, k) - most)
        store(coupling, k, e)
        whole = whole + e
    share = 1 / total(whole)  # one division, and products with it, in place of a division for each parent
    for k in range(at, end, LANES):
        store(coupling, k, load(coupling, k) * share)


@subroutine
def differentiate_child(d_votes, weight, child, d_u):
    """Compute: d_u = d_votes W', summed over parents, two rows by four columns at a time."""
    blocks, height, m, _ = d_votes.shape
    columns = d_u.shape[1]
    step = m * LANES
    for r in range(0, height, 2):
        for c in range(0, columns, 4):
            # a_k and b_k gather column c + k of rows r and r + 1, each lane for its own parents, which are joined last
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = zeros(d_votes)
            for x in range(blocks):
                w = ((child * blocks + x) * columns + c) * step
                v = (x * height + r) * step
                for k in range(0, step, LANES):
                    y, z = load(d_votes, v + k), load(d_votes, v + step + k)
                    one = load(weight, w + k)
                    a0, b0 = a0 + y * one, b0 + z * one
                    one = load(weight, w + step + k)
                    a1, b1 = a1 + y * one, b1 + z * one
                    one = load(weight, w + 2 * step + k)
                    a2, b2 = a2 + y * one, b2 + z * one
                    one = load(weight, w + 3 * step + k)
                    a3, b3 = a3 + y * one, b3 + z * one
            store_totals(d_u, r * columns + c, a0, a1, a2, a3)
            store_totals(d_u, (r + 1) * columns + c, b0, b1, b2, b3)


@subroutine
def differentiate_weight(u, d_votes, child, d_weight):
    """Compute: d_weight += u' d_votes, four columns of u by two of the votes at a time."""
    blocks, height, m, _ = d_votes.shape
    columns = u.shape[1]
    step = m * LANES
    for x in range(blocks):
        for c in range(0, columns, 4):
            for s in range(0, m, 2):
                # what is there is loaded once, all rows of the positions are added to it, and it is stored once
                k = ((child * blocks + x) * columns + c) * step + s * LANES
                a0, b0 = load(d_weight, k), load(d_weight, k + LANES)
                a1, b1 = load(d_weight, k + step), load(d_weight, k + step + LANES)
                a2, b2 = load(d_weight, k + 2 * step), load(d_weight, k + 2 * step + LANES)
                a3, b3 = load(d_weight, k + 3 * step), load(d_weight, k + 3 * step + LANES)
                for r in range(height):
                    v = ((x * height + r) * m + s) * LANES
                    left, right = load(d_votes, v), load(d_votes, v + LANES)
                    y = broadcast(u, r * columns + c)
                    a0, b0 = a0 + y * left, b0 + y * right
                    y = broadcast(u, r * columns + c + 1)
                    a1, b1 = a1 + y * left, b1 + y * right
                    y = broadcast(u, r * columns + c + 2)
                    a2, b2 = a2 + y * left, b2 + y * right
                    y = broadcast(u, r * columns + c + 3)
                    a3, b3 = a3 + y * left, b3 + y * right
                store(d_weight, k, a0)
                store(d_weight, k + LANES, b0)
                store(d_weight, k + step, a1)
                store(d_weight, k + step + LANES, b1)
                store(d_weight, k + 2 * step, a2)
                store(d_weight, k + 2 * step + LANES, b2)
                store(d_weight, k + 3 * step, a3)
                store(d_weight, k + 3 * step + LANES, b3)
