"""Dynamic routing of a packed XnODR layer, all iterations, on CPU: the weights are never unpacked.

A vote is sign(u) . sign(W) times two scales. The signs of a child are one word, those of a column of W another, and
their dot product is d - 2 popcount(a xor b). So a pass over the children reads 1 + 16 / d bits a weight (half scales)
where the float form reads 32, and writes nothing but parents. Each iteration is one pass: votes of a child with all
parents stay in the nearest cache while its logits with the sum of all outputs so far, their softmax, and its share in
the new outputs are taken. Here the elements of a pose lie in the lanes of a vector, for a few images; in `images.py`
the images of a batch do. With XnIDR's agreement, too ("both at once"), signs of votes are compared, and recalled of
outputs; a vote's sign is that of a whole number, so that one that cancels is 0 exactly.

With |u| the mean size of a child's elements and |W| that of a column's, both kept apart from the signs, an iteration is

    v_ijk = |u_i| |W_ijk| (sign(u_i) . sign(W_ijk))       votes: `dots` times `near`, and |u_i| last of all
    l_ij  = sum_k v_ijk S_jk                              S: the sum of the outputs so far
    c_ij  = softmax over j of l_ij                        1 / J in the first iteration
    s_jk  = bias_jk + sum_i c_ij v_ijk,   S_jk += squash(s_j)_k

and with XnIDR's agreement l_ij = mean|v_ij| sum_k sign(v_ijk) S_jk, and S_jk += sign(squash(s_j)_k) mean|squash(s_j)|.
`_pass` has all but the last for a run of children, `_squash` the bias and the last. `torchcaps.kernels.simd` says how
to read vectors: here a lane is an element k of a pose, of which there are D, `elements`, padded to whole vectors of
scale 0.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from torchcaps.kernels.dynamic.few import route_votes, spaces
from torchcaps.kernels.lanes import blocks, clear, rooms
from torchcaps.kernels.simd import (
    LANES,
    broadcast,
    compiled,
    exp,
    highest,
    load,
    magnitude,
    select,
    store,
    store_totals,
    subroutine,
    total,
    transpose,
    zeros,
)
from torchcaps.kernels.threads import ranges, run
from torchcaps.names import fits
from torchcaps.packed.bits import binarize, dots, every, find_middles, scale
from torchcaps.packed.images import SMALLEST, route_images
from torchcaps.votes import Threshold

WORTH_A_THREAD = 2**17  # elements of votes
NEAR = 2**17  # elements of votes that stay in a core's own cache: they are made once, of the bits, and kept
MANY = 6  # images for each thread, from which on they lie in lanes
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}  # by bytes


class PackedLoop:
    """Weights in the order in which the loop reads them: children first, poses padded to whole vectors.

    Args:
        positive: which weights are, bool [j, i, c, m], on the CPU, of poses of up to 64 elements c; read once.
        scales: of each child and each element of a parent's pose, [j, i, m], float32, or of half precision.
        bias: of the parents, [j, m]; None: none.
        threshold: of the signs of children.
        xnor: signs of votes are compared, and recalled of outputs (XnIDR's agreement, too).
    """

    def __init__(self, positive: Tensor, scales: Tensor, bias: Tensor | None, threshold: Threshold, xnor: bool):
        self.xnor, self.threshold, self._kept = xnor, threshold, threading.local()
        self.parents, self.children, self.length, self.pose = positive.shape
        self.padded = -(-self.pose // LANES) * LANES
        self.bytes = next(size for size in WORDS if 8 * size >= self.length)
        self.words = np.zeros((self.children, self.parents, self.padded), WORDS[self.bytes])
        self.words[..., : self.pose] = self._pack(positive.permute(1, 0, 3, 2))  # [i, j, m, c]
        scales = F.pad(scales.transpose(0, 1), (0, self.padded - self.pose))  # [i, j, m]
        half = scales.dtype == torch.float16
        self.scales = (scales.contiguous() if half else scales.float().contiguous()).numpy()
        self.scales = self.scales.view(np.uint16) if half else self.scales
        self.bias = np.zeros((self.parents, self.padded), np.float32)
        if bias is not None:
            self.bias[:, : self.pose] = bias.detach().float().numpy()

    @property
    def nbytes(self) -> int:
        """Return the size of all that a pass reads of the weights."""
        return self.words.nbytes + self.scales.nbytes

    def __call__(self, poses: Tensor, iterations: int = 3) -> Tensor:
        """Map children [b, i, d], float32 -> parents [b, j, D] after `iterations`, at least 1; no gradient.

        Raises:
            ValueError: for children of another number or length, and for fewer iterations.
        """
        if poses.shape[1:] != (self.children, self.length):  # numba reads and writes beyond an array unchecked
            raise ValueError(
                f"the children are {tuple(poses.shape[1:])} (capsules, pose), but the transform takes "
                f"({self.children}, {self.length})"
            )
        if not fits(iterations, int) or iterations < 1:
            raise ValueError(f"iterations is {iterations!r}; it must be a whole number, at least 1")
        images, poses = len(poses), poses.detach().contiguous()
        if not images:
            return poses.new_zeros(0, self.parents, self.pose)
        children, middles = poses.numpy(), np.zeros(images, np.float32)
        if self.threshold == "midpoint":
            find_middles(children, middles)
        if images >= MANY * torch.get_num_threads():
            return self._route_images(children, middles, iterations)
        votes = (images, blocks(self.children), self.parents, self.pose, LANES)
        if self.pose == self.padded and math.prod(votes) <= NEAR:
            out = np.empty((2, images, self.parents, self.pose), np.float32)
            inputs = (children, middles, self.words, self.scales, self.bias, self.xnor or None, iterations)
            _route_few(*inputs, out[0], out[1], *self._space(votes))
            return torch.from_numpy(out[0])
        signs = np.empty((self.children, images), self.words.dtype)
        sizes = np.empty((self.children, images), np.float32)
        state = np.zeros((images, self.parents, self.padded), np.float32)
        parents = np.empty_like(state)
        spans = ranges(self.children, max(1, WORTH_A_THREAD // state.size))
        sums = np.empty((len(spans), *state.shape), np.float32)
        if len(spans) == 1:  # one call: seven take as long as a small layer
            weights, flags = (self.words, self.scales, self.bias), (self.pose, self.xnor, iterations)
            _route(children, middles, signs, sizes, *weights, state, *flags, sums, parents)
            return torch.from_numpy(parents)[..., : self.pose]
        binarize(children, middles, 0, images, signs, sizes)
        for t in range(iterations):
            sums.fill(0)
            inputs = (signs, sizes, self.words, self.scales, state, self.length, self.pose, self.xnor, t == 0)
            run(lambda part, first, end, inputs=inputs: _pass(*inputs, first, end, sums[part]), spans)
            _squash(sums, self.bias, parents, state, self.pose, self.xnor)
        return torch.from_numpy(parents)[..., : self.pose]

    def _space(self, votes: tuple[int, ...]) -> list[np.ndarray]:
        """Return memory that `_route_few` works in, of the calling thread alone.

        It is kept for the next call, at most two megabytes: to ask for it takes as long as a small layer's votes.
        """
        if getattr(self._kept, "shape", None) != votes:
            each = (self.children, votes[0])
            shapes = (each, votes, (LANES, self.pose), *spaces(self.parents, self.pose))
            self._kept.space = [np.empty(each, self.words.dtype), *rooms(self.bias, *shapes)]
            self._kept.shape = votes
        return self._kept.space

    def _route_images(self, children: np.ndarray, middles: np.ndarray, iterations: int) -> Tensor:
        """Return the same for a batch, each thread with images of its own."""
        parents = np.empty((len(children), self.parents, self.pose), np.float32)
        groups = -(-len(children) // LANES)
        worth = max(1, WORTH_A_THREAD // (LANES * self.words.size))
        weights, pose = (self.words, self.scales, self.bias), -(-self.pose // 4) * 4
        inputs = (children, middles, *weights, pose, self.xnor, iterations)
        run(lambda part, first, end: route_images(*inputs, first, end, parents), ranges(groups, worth))
        return torch.from_numpy(parents)

    def _pack(self, positive: Tensor) -> np.ndarray:
        """Map bool [..., c] -> words [...], lowest bit first."""
        bits = np.packbits(positive.numpy(), axis=-1, bitorder="little")
        missing = self.bytes - bits.shape[-1]
        bits = np.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, missing)])
        return np.ascontiguousarray(bits).view(WORDS[self.bytes])[..., 0]


@compiled
def _route_few(
    poses, middles, words, scales, bias, xnor, iterations, out, carried, signs, sizes, votes, near, sums, state, shares
):
    """Compute: everything for a few images of a small layer, whose votes are kept; `out` [b, j, D] is the result."""
    _votes(poses, middles, signs, sizes, words, scales, votes, near)
    route_votes(votes, bias, xnor, iterations, out, carried, sums, state, shares)


@subroutine
def _votes(poses, middles, signs, sizes, words, scales, out, near):
    """Compute: votes [b, blocks of 16 children, j, D, 16], as `kernels.few` makes them of floats."""
    images, groups, parents, pose, _ = out.shape
    children, length = poses.shape[1:]
    binarize(poses, middles, 0, images, signs, sizes)
    for group in range(groups):
        start = group * LANES
        count = min(LANES, children - start)
        clear(near, count * pose, (LANES - count) * pose // LANES)
        for n in range(images):
            for j in range(parents):
                for k in range(count):
                    i = start + k
                    at, size = (i * parents + j) * pose, every(sizes[i, n])
                    for d in range(0, pose, LANES):
                        vote = dots(words, at + d, signs[i, n], length) * scale(scales, at + d)
                        store(near, k * pose + d, vote * size)
                into = ((n * groups + group) * parents + j) * pose * LANES
                for d in range(0, pose, LANES):
                    transpose(near, d, pose, out, into + d * LANES, LANES)


@compiled
def _route(poses, middles, signs, sizes, words, scales, bias, state, elements, xnor, iterations, sums, parents):
    """Compute: everything, on one thread; `parents` [b, j, D] is the result."""
    binarize(poses, middles, 0, poses.shape[0], signs, sizes)
    for t in range(iterations):
        sums[:] = 0
        _pass(signs, sizes, words, scales, state, poses.shape[2], elements, xnor, t == 0, 0, poses.shape[1], sums[0])
        _squash(sums, bias, parents, state, elements, xnor)


@compiled
def _squash(sums, bias, parents, state, elements, xnor):
    """Compute: parents [b, j, D] = squash of the bias [j, D] and the sum of `sums` [threads, b, j, D].

    They are added to `state`, or with `xnor` their signs times the mean size of their `elements`.
    """
    threads, images, number, pose = sums.shape
    for b in range(images):
        for j in range(number):
            square = np.float32(0)
            for k in range(pose):
                x = bias[j, k]
                for part in range(threads):  # of the children of each thread
                    x += sums[part, b, j, k]
                parents[b, j, k] = x
                square += x * x
            # squash: |s|^2 / (1 + |s|^2) s / |s|, the length with a floor
            factor = np.float32(square / (1 + square) / np.sqrt(max(square, SMALLEST)))
            size = np.float32(0)
            for k in range(pose):
                parents[b, j, k] *= factor
                size += abs(parents[b, j, k])
            size /= np.float32(elements)
            for k in range(elements):
                x = parents[b, j, k]
                state[b, j, k] += (size if x > 0 else -size) if xnor else x


@compiled
def _pass(signs, sizes, words, scales, state, length, elements, xnor, uniform, first, end, out):
    """Compute: out [b, j, D] += what the children from `first` to `end` give; `uniform`ly, or by agreement with
    `state`.
    """
    images, parents, pose = out.shape
    width = -(-parents // LANES) * LANES
    near = np.empty(parents * pose, np.float32)  # scales of one child, for all images
    shares = np.zeros((images, width), np.float32)
    outside = np.zeros(width, np.float32)  # minus infinity in the lanes beyond the last parent
    outside[parents:] = -np.inf
    for i in range(first, end):
        base = i * parents * pose  # of the child's words and scales
        for k in range(0, parents * pose, LANES):
            store(near, k, scale(scales, base + k))  # |W_ijk|, from half precision where it is kept so
        if uniform:
            for b in range(images):
                shares[b] = sizes[i, b] / parents  # c_ij |u_i|: what a vote's signs and |W| are yet to be times
        else:  # each for all images, so that none waits for what was just stored
            if xnor:
                _agree_in_signs(words, base, signs[i], length, near, state, shares, elements)
            else:
                _agree(words, base, signs[i], length, near, state, shares)  # l_ij / |u_i|
            _softmax(shares, outside, sizes[i])  # c_ij |u_i|
        for b in range(images):
            for j in range(parents):  # s_j += c_ij |u_i| (|W| sign(u) . sign(W)), 16 elements at a time
                share = broadcast(shares, b * width + j)
                for k in range(j * pose, (j + 1) * pose, LANES):
                    here = b * parents * pose + k
                    vote = dots(words, base + k, signs[i, b], length) * load(near, k)
                    store(out, here, load(out, here) + vote * share)


@subroutine
def _agree(words, base, signs, length, near, state, shares):
    """Write into `shares` [b, j] the products of the state and of the votes of a child of size 1."""
    images, parents, pose = state.shape
    step = parents * pose
    for b in range(images):
        word, here = signs[b], b * step - base
        for j in range(0, parents, 4):  # four at a time; the last ones beside zeros
            left = parents - j
            # a_n gathers parent j + n, each lane its own elements; `store_totals` sums across the lanes of all four
            a0 = a1 = a2 = a3 = zeros(near)
            for k in range(base + j * pose, base + (j + 1) * pose, LANES):
                a0 = a0 + dots(words, k, word, length) * load(near, k - base) * load(state, here + k)
            for k in range(base + (j + 1) * pose, base + (j + 2) * pose if left > 1 else 0, LANES):
                a1 = a1 + dots(words, k, word, length) * load(near, k - base) * load(state, here + k)
            for k in range(base + (j + 2) * pose, base + (j + 3) * pose if left > 2 else 0, LANES):
                a2 = a2 + dots(words, k, word, length) * load(near, k - base) * load(state, here + k)
            for k in range(base + (j + 3) * pose, base + (j + 4) * pose if left > 3 else 0, LANES):
                a3 = a3 + dots(words, k, word, length) * load(near, k - base) * load(state, here + k)
            store_totals(shares, b * shares.shape[1] + j, a0, a1, a2, a3)


@subroutine
def _agree_in_signs(words, base, signs, length, near, state, shares, elements):
    """Write into `shares` [b, j] the products of the state and of the signs of a child's votes, times their mean
    size.
    """
    images, parents, pose = state.shape
    nothing = zeros(near)
    for b in range(images):
        word, here = signs[b], b * parents * pose
        for j in range(parents):
            a = m = nothing  # sum_k sign(v_k) S_k, and sum_k |v_k|
            for k in range(j * pose, (j + 1) * pose, LANES):  # what is padded has scale and state 0
                vote, x = dots(words, base + k, word, length) * load(near, k), load(state, here + k)
                a, m = a + select(vote, nothing, x, nothing - x), m + magnitude(vote)
            shares[b, j] = total(a) * total(m) / np.float32(elements)


@subroutine
def _softmax(shares, outside, sizes):
    """Turn products of a child of size 1 [b, j] into its shares in the parents, times its size."""
    images, width = shares.shape
    for b in range(images):
        at, size = b * width, every(sizes[b])
        # l_ij, and minus infinity in the lanes beyond the last parent; then the largest of them
        most = load(outside, 0) + load(shares, at) * size
        for k in range(LANES, width, LANES):
            x = load(outside, k) + load(shares, at + k) * size
            most = select(x, most, x, most)
        top = every(highest(most))
        whole = zeros(shares)
        for k in range(0, width, LANES):
            x = exp(load(outside, k) + load(shares, at + k) * size - top)
            store(shares, at + k, x)
            whole = whole + x
        rate = every(np.float32(sizes[b] / total(whole)))  # e^(l - most) times this is c_ij |u_i|
        for k in range(0, width, LANES):
            store(shares, at + k, load(shares, at + k) * rate)
