"""The loop of a batch: 16 images in the lanes of a vector, through all iterations.

A weight's word and scale are the same for all images, so each goes to all lanes at once. Nothing is summed across
lanes, and outputs stay in registers over a block of children; only its shares are kept. Votes are made twice, once for
their agreement and once for the outputs, which costs less than keeping them.
"""

from __future__ import annotations

import numpy as np

from torchcaps.kernels.lanes import softmax
from torchcaps.kernels.packed.bits import binarize, dots, scale
from torchcaps.kernels.simd import LANES, compiled, load, root, select, spread, store, zeros

BLOCK = 8  # children
SMALLEST = np.float32(1e-24)  # squared length from which on a squash divides


@compiled
def route_images(poses, words, scales, pose, iterations, first, end, parents):
    """The parents [b, j, D] of the groups of 16 images from `first` to `end`.

    poses [b, i, c]; words and scales [i, j, D], padded; `pose` is D, padded to a multiple of 4.
    """
    images, children, length = poses.shape
    number = words.shape[1]
    signs, sizes = np.zeros((children, LANES), words.dtype), np.zeros((children, LANES), np.float32)
    state = np.empty((number, pose, LANES), np.float32)  # the sum of all outputs so far
    sums = np.empty((number, pose, LANES), np.float32)
    near = np.empty((BLOCK, scales.shape[1] * scales.shape[2]), np.float32)  # scales of a block as float32
    shares = np.empty((BLOCK, number, LANES), np.float32)
    for start in range(first * LANES, min(end * LANES, images), LANES):
        here = min(start + LANES, images) - start
        sizes[:, here:] = 0
        binarize(poses, start, here, signs, sizes)
        state[:] = 0
        for t in range(iterations):
            sums[:] = 0
            for i in range(0, children, BLOCK):
                count = min(BLOCK, children - i)
                for n in range(count):
                    _bring_near(scales, i + n, near, n)
                    if t == 0:
                        _share_evenly(sizes, i + n, shares, n)
                    else:
                        _agree(signs, sizes, words, i + n, length, near, state, shares, n)
                        softmax(shares, n * number * LANES, number, load(sizes, (i + n) * LANES))
                _add_votes(signs, words, i, count, length, near, shares, sums)
            _squash(sums, state)
        for b in range(here):
            for j in range(number):
                for k in range(parents.shape[2]):
                    parents[start + b, j, k] = sums[j, k, b]


@compiled
def _bring_near(scales, i, near, n):
    width = near.shape[1]
    for k in range(0, width, LANES):
        store(near, n * width + k, scale(scales, i * width + k))


@compiled
def _share_evenly(sizes, i, shares, n):
    number = shares.shape[1]
    share = load(sizes, i * LANES) / np.float32(number)
    for j in range(number):
        store(shares, (n * number + j) * LANES, share)


@compiled
def _agree(signs, sizes, words, i, length, near, state, shares, n):
    """shares [n, j] are the products of the state and of the votes of child i."""
    number, pose, _ = state.shape
    padded, at = words.shape[2], i * LANES
    for j in range(number):
        a0 = a1 = a2 = a3 = zeros(near)
        for k in range(0, pose, 4):
            s, b = (n * number + j) * padded + k, (j * pose + k) * LANES
            a0 = a0 + dots(signs, at, words[i, j, k], length) * spread(near, s) * load(state, b)
            a1 = a1 + dots(signs, at, words[i, j, k + 1], length) * spread(near, s + 1) * load(state, b + LANES)
            a2 = a2 + dots(signs, at, words[i, j, k + 2], length) * spread(near, s + 2) * load(state, b + 2 * LANES)
            a3 = a3 + dots(signs, at, words[i, j, k + 3], length) * spread(near, s + 3) * load(state, b + 3 * LANES)
        store(shares, (n * number + j) * LANES, (a0 + a1 + (a2 + a3)) * load(sizes, at))


@compiled
def _add_votes(signs, words, i, count, length, near, shares, sums):
    """sums [j, D] += the votes of `count` children from i on, by their shares."""
    number, pose, _ = sums.shape
    padded = words.shape[2]
    for j in range(number):
        for k in range(0, pose, 4):
            b = (j * pose + k) * LANES
            a0, a1, a2, a3 = load(sums, b), load(sums, b + LANES), load(sums, b + 2 * LANES), load(sums, b + 3 * LANES)
            for n in range(count):
                share, at, s = load(shares, (n * number + j) * LANES), (i + n) * LANES, (n * number + j) * padded + k
                a0 = a0 + dots(signs, at, words[i + n, j, k], length) * spread(near, s) * share
                a1 = a1 + dots(signs, at, words[i + n, j, k + 1], length) * spread(near, s + 1) * share
                a2 = a2 + dots(signs, at, words[i + n, j, k + 2], length) * spread(near, s + 2) * share
                a3 = a3 + dots(signs, at, words[i + n, j, k + 3], length) * spread(near, s + 3) * share
            store(sums, b, a0)
            store(sums, b + LANES, a1)
            store(sums, b + 2 * LANES, a2)
            store(sums, b + 3 * LANES, a3)


@compiled
def _squash(sums, state):
    """Sums [j, D] become parents, which are added to `state`."""
    number, pose, _ = sums.shape
    for first in range(0, number * pose * LANES, pose * LANES):
        square = zeros(sums)
        for at in range(first, first + pose * LANES, LANES):
            square = square + load(sums, at) * load(sums, at)
        least = zeros(sums) + SMALLEST
        factor = square / (square + np.float32(1)) / root(select(square, least, square, least))
        for at in range(first, first + pose * LANES, LANES):
            parent = load(sums, at) * factor
            store(sums, at, parent)
            store(state, at, load(state, at) + parent)
