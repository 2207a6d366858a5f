"""The loop of a batch: 16 images in the lanes of a vector, through all iterations.

A weight's word and scale are the same for all images, so each goes to all lanes at once. Nothing is summed across
lanes, and outputs stay in registers over a block of children; only its shares are kept. Votes are made twice, once for
their agreement and once for the outputs, which costs less than keeping them.

The formulas are those of `torchcaps.packed.loop`, and `route_images` has a line for each; what is [.., 16] there has a
lane an image, so that `dots` takes the words of a child in 16 images, and one word of a weight.
"""

from __future__ import annotations

import numpy as np

from torchcaps.kernels.lanes import softmax
from torchcaps.kernels.simd import LANES, broadcast, compiled, load, magnitude, root, select, store, subroutine, zeros
from torchcaps.packed.bits import binarize, dots, scale

BLOCK = 8  # children
SMALLEST = np.float32(1e-24)  # squared length from which on a squash divides


@compiled
def route_images(poses, middles, words, scales, bias, pose, xnor, iterations, first, end, parents):
    """Compute: the parents [b, j, D] of the groups of 16 images from `first` to `end`.

    poses [b, i, c] and their thresholds [b]; words and scales [i, j, D] and bias [j, D], padded; `pose` is D, padded to
    a multiple of 4. With `xnor` votes agree by their signs, and outputs are recalled so.
    """
    images, children, length = poses.shape
    number, elements = words.shape[1], parents.shape[2]
    signs, sizes = np.zeros((children, LANES), words.dtype), np.zeros((children, LANES), np.float32)
    state = np.empty((number, pose, LANES), np.float32)  # the sum of all outputs so far
    sums = np.empty((number, pose, LANES), np.float32)
    near = np.empty((BLOCK, scales.shape[1] * scales.shape[2]), np.float32)  # scales of a block as float32
    shares = np.empty((BLOCK, number, LANES), np.float32)
    for start in range(first * LANES, min(end * LANES, images), LANES):
        here = min(start + LANES, images) - start
        sizes[:, here:] = 0  # images that are not there: votes of size 0
        binarize(poses, middles, start, here, signs, sizes)  # sign(u_i) and |u_i|, once for all iterations
        state[:] = 0
        for t in range(iterations):
            for j in range(number):
                for k in range(pose):
                    sums[j, k] = bias[j, k]
            for i in range(0, children, BLOCK):
                count = min(BLOCK, children - i)
                for n in range(count):
                    _bring_near(scales, i + n, near, n)  # |W_ijk|
                    if t == 0:
                        _share_evenly(sizes, i + n, shares, n)  # c_ij |u_i|, with c_ij = 1 / J
                    else:
                        if xnor:
                            _agree_in_signs(signs, sizes, words, i + n, length, near, state, shares, n, elements)
                        else:
                            _agree(signs, sizes, words, i + n, length, near, state, shares, n)  # l_ij
                        softmax(shares, n * number * LANES, number, load(sizes, (i + n) * LANES))  # c_ij |u_i|
                _add_votes(signs, words, i, count, length, near, shares, sums)  # s_j += c_ij v_ij, of the block
            _squash(sums, state, xnor, elements)  # parents, and S += what is recalled of them
        for b in range(here):
            for j in range(number):
                for k in range(parents.shape[2]):
                    parents[start + b, j, k] = sums[j, k, b]


@subroutine
def _bring_near(scales, i, near, n):
    """Write child i's scales [j, D] as float32 into row n of `near`."""
    width = near.shape[1]
    for k in range(0, width, LANES):
        store(near, n * width + k, scale(scales, i * width + k))


@subroutine
def _share_evenly(sizes, i, shares, n):
    """Write into `shares` [n, j] the size of child i over the number of parents."""
    number = shares.shape[1]
    share = load(sizes, i * LANES) / np.float32(number)
    for j in range(number):
        store(shares, (n * number + j) * LANES, share)


@subroutine
def _agree(signs, sizes, words, i, length, near, state, shares, n):
    """Write into `shares` [n, j] the products of the state and of the votes of child i."""
    number, pose, _ = state.shape
    padded, at = words.shape[2], i * LANES
    for j in range(number):
        a0 = a1 = a2 = a3 = zeros(near)  # elements k, k + 1, k + 2 and k + 3 apart, so that no sum waits for another
        for k in range(0, pose, 4):
            # of |W_ijk| in `near`, and of S_jk of 16 images in the state
            s, b = (n * number + j) * padded + k, (j * pose + k) * LANES
            a0 = a0 + dots(signs, at, words[i, j, k], length) * broadcast(near, s) * load(state, b)
            a1 = a1 + dots(signs, at, words[i, j, k + 1], length) * broadcast(near, s + 1) * load(state, b + LANES)
            a2 = a2 + dots(signs, at, words[i, j, k + 2], length) * broadcast(near, s + 2) * load(state, b + 2 * LANES)
            a3 = a3 + dots(signs, at, words[i, j, k + 3], length) * broadcast(near, s + 3) * load(state, b + 3 * LANES)
        store(shares, (n * number + j) * LANES, (a0 + a1 + (a2 + a3)) * load(sizes, at))


@subroutine
def _agree_in_signs(signs, sizes, words, i, length, near, state, shares, n, elements):
    """Write into `shares` [n, j] the products of the state and of the signs of the votes of child i, times their
    mean size.
    """
    number, pose, _ = state.shape
    padded, at = words.shape[2], i * LANES
    nothing = zeros(near)
    for j in range(number):
        a0 = a1 = m0 = m1 = nothing  # sum_k sign(v_k) S_k and sum_k |v_k|, each of even and of odd elements
        for k in range(0, pose, 2):  # what is padded has scale and state 0
            s, b = (n * number + j) * padded + k, (j * pose + k) * LANES
            v0 = dots(signs, at, words[i, j, k], length) * broadcast(near, s)
            v1 = dots(signs, at, words[i, j, k + 1], length) * broadcast(near, s + 1)
            x0, x1 = load(state, b), load(state, b + LANES)
            a0, m0 = a0 + select(v0, nothing, x0, nothing - x0), m0 + magnitude(v0)
            a1, m1 = a1 + select(v1, nothing, x1, nothing - x1), m1 + magnitude(v1)
        size = load(sizes, at) / np.float32(elements)  # |u_i| / D: of the mean over the vote's elements
        store(shares, (n * number + j) * LANES, (a0 + a1) * (m0 + m1) * size)


@subroutine
def _add_votes(signs, words, i, count, length, near, shares, sums):
    """Compute: sums [j, D] += the votes of `count` children from i on, by their shares."""
    number, pose, _ = sums.shape
    padded = words.shape[2]
    for j in range(number):
        for k in range(0, pose, 4):
            b = (j * pose + k) * LANES
            # four elements of s_j in registers, to which all children of the block are added before they are stored
            a0, a1, a2, a3 = load(sums, b), load(sums, b + LANES), load(sums, b + 2 * LANES), load(sums, b + 3 * LANES)
            for n in range(count):
                share, at, s = load(shares, (n * number + j) * LANES), (i + n) * LANES, (n * number + j) * padded + k
                a0 = a0 + dots(signs, at, words[i + n, j, k], length) * broadcast(near, s) * share
                a1 = a1 + dots(signs, at, words[i + n, j, k + 1], length) * broadcast(near, s + 1) * share
                a2 = a2 + dots(signs, at, words[i + n, j, k + 2], length) * broadcast(near, s + 2) * share
                a3 = a3 + dots(signs, at, words[i + n, j, k + 3], length) * broadcast(near, s + 3) * share
            store(sums, b, a0)
            store(sums, b + LANES, a1)
            store(sums, b + 2 * LANES, a2)
            store(sums, b + 3 * LANES, a3)


@subroutine
def _squash(sums, state, xnor, elements):
    """Compute: sums [j, D] become parents, which are added to `state`, or with `xnor` their signs times their mean
    size.
    """
    number, pose, _ = sums.shape
    nothing = zeros(sums)
    for first in range(0, number * pose * LANES, pose * LANES):
        square = zeros(sums)
        for at in range(first, first + pose * LANES, LANES):
            square = square + load(sums, at) * load(sums, at)
        least = zeros(sums) + SMALLEST
        # squash: |s|^2 / (1 + |s|^2) s / |s|, the length with a floor
        factor = square / (square + np.float32(1)) / root(select(square, least, square, least))
        size = nothing
        for at in range(first, first + pose * LANES, LANES):
            parent = load(sums, at) * factor
            store(sums, at, parent)
            if xnor:
                size = size + magnitude(parent)
            else:
                store(state, at, load(state, at) + parent)
        if xnor:
            size = size / np.float32(elements)
            for at in range(first, first + elements * LANES, LANES):
                seen = select(load(sums, at), nothing, size, nothing - size)
                store(state, at, load(state, at) + seen)
