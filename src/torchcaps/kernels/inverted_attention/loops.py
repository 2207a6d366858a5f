"""The loops of the step on CPU. Importing this module imports numba.

`forward_loop` is README.md's "What is computed" line by line, and `backward_loop` its "Backward".
`torchcaps.kernels.simd` says how to read vectors, `torchcaps.kernels.windows` how arrays lie. The queries of the
parents, their sums and their gradients are [blocks, positions * rows, m, 16]. Loops take `xnor` and `binary` as True or
None: what stands behind None is not compiled.
"""

from __future__ import annotations

import numpy as np

from torchcaps.kernels.simd import LANES, broadcast, compiled, load, magnitude, select, store, subroutine, total, zeros
from torchcaps.kernels.windows import (
    differentiate_child,
    differentiate_weight,
    give_child,
    give_parents,
    make_votes,
    softmax,
    take_child,
    take_parents,
)


@compiled
def forward_loop(poses, weight, query, source, rows, together, xnor, binary, first, end, out):
    """Compute: out [positions, j, d] of the positions from `first` to `end`, `together` at a time."""
    _, blocks, columns, m, _ = weight.shape
    window, types = source.shape[1], poses.shape[2]
    # what the loop works on, small enough for the nearest cache, and used again for every child and group of positions
    u = np.zeros((together * rows, columns), poses.dtype)
    q = np.zeros((blocks, together * rows, m, LANES), poses.dtype)
    votes, sums = np.zeros_like(q), np.zeros_like(q)
    coupling = np.empty((together, blocks, LANES), poses.dtype)
    for start in range(first, end, together):
        count = min(together, end - start)
        take_parents(query, start, count, rows, q)
        for k in range(0, sums.size, LANES):
            store(sums, k, zeros(sums))
        for k in range(window):  # a child i of a window is type n at offset k
            for n in range(types):
                take_child(poses, source, start, count, k, n, rows, u)  # u_i of these positions
                make_votes(u, weight, k * types + n, votes)  # v_ij = u_i W_ij for all j, over those of the last child
                if binary is not None:
                    _cancel(u, weight, k * types + n, votes)
                _couple(votes, q, count, rows, query.shape, xnor, coupling)  # c_ij = softmax over j of v_ij . q_j
                _add(votes, coupling, count, rows, sums)  # s_j += c_ij v_ij
        give_parents(sums, start, count, rows, out)


@compiled
def backward_loop(
    gradient, poses, weight, query, source, rows, together, xnor, binary, first, end, d_poses, d_weight, d_query
):
    """Compute: gradients of the positions from `first` to `end`; those of children and weight are added to what is
    there.
    """
    _, blocks, columns, m, _ = weight.shape
    window, types = source.shape[1], poses.shape[2]
    u = np.zeros((together * rows, columns), poses.dtype)
    d_u = np.zeros_like(u)
    q = np.zeros((blocks, together * rows, m, LANES), poses.dtype)
    g, votes, d_q = np.zeros_like(q), np.zeros_like(q), np.zeros_like(q)
    coupling = np.empty((together, blocks, LANES), poses.dtype)
    change = np.empty_like(coupling)
    for start in range(first, end, together):
        count = min(together, end - start)
        take_parents(query, start, count, rows, q)
        take_parents(gradient, start, count, rows, g)
        for k in range(0, d_q.size, LANES):
            store(d_q, k, zeros(d_q))
        for k in range(window):
            for n in range(types):
                child = k * types + n
                take_child(poses, source, start, count, k, n, rows, u)
                make_votes(u, weight, child, votes)  # again, since forward kept none
                if binary is not None:
                    _cancel(u, weight, child, votes)
                _couple(votes, q, count, rows, query.shape, xnor, coupling)
                _differentiate(votes, g, coupling, count, rows, change)  # l_ij
                if xnor is None:
                    _give_votes(votes, q, g, coupling, change, count, rows, d_q)  # `votes` now holds dv_ij
                else:
                    _give_signs(votes, q, g, coupling, change, count, rows, query.shape[2], d_q)
                differentiate_child(votes, weight, child, d_u)  # du_i = sum_j dv_ij W_ij'
                differentiate_weight(u, votes, child, d_weight)  # dW_ij += u_i' dv_ij
                give_child(d_u, source, start, count, k, n, rows, d_poses)  # added: windows share children
        give_parents(d_q, start, count, rows, d_query)


@subroutine
def _dot(votes, parents, at, size):
    """Return sum_d v p of 16 parents, whose `size` elements stand from `at` on; four sums hide the wait for each
    other.
    """
    a0 = a1 = a2 = a3 = zeros(votes)
    k = at
    while k + 4 * LANES <= at + size * LANES:
        a0 = a0 + load(votes, k) * load(parents, k)
        a1 = a1 + load(votes, k + LANES) * load(parents, k + LANES)
        a2 = a2 + load(votes, k + 2 * LANES) * load(parents, k + 2 * LANES)
        a3 = a3 + load(votes, k + 3 * LANES) * load(parents, k + 3 * LANES)
        k += 4 * LANES
    while k < at + size * LANES:
        a0 = a0 + load(votes, k) * load(parents, k)
        k += LANES
    return (a0 + a1) + (a2 + a3)


@subroutine
def _cancel(u, weight, child, votes):
    """Make 0 of what is less than half a term of its sum, where terms differ in sign alone: rounding left it."""
    blocks, height, m, _ = votes.shape
    columns = u.shape[1]
    half = votes.dtype.type(0.5)
    for x in range(blocks):
        w = (child * blocks + x) * columns * m * LANES
        for r in range(height):
            # all elements of a row of u are of one size, as those of a column of W are: the first of each has it
            size = magnitude(broadcast(u, r * columns)) * half
            for s in range(m):  # v[r, s] is a sum of terms +-|u| |W|: 0, or at least one of them
                k = ((x * height + r) * m + s) * LANES
                vote = load(votes, k)
                least = size * magnitude(load(weight, w + s * LANES))
                store(votes, k, select(least, magnitude(vote), zeros(votes), vote))


@subroutine
def _scale(votes, at, size, pose):
    """Return mean size of the `pose` elements of votes for 16 parents, in `size` vectors from `at` on."""
    a0 = a1 = zeros(votes)  # of even and odd vectors: there is an even number, what fills up being 0
    for k in range(at, at + size * LANES, 2 * LANES):
        a0, a1 = a0 + magnitude(load(votes, k)), a1 + magnitude(load(votes, k + LANES))
    return (a0 + a1) / votes.dtype.type(pose)


@subroutine
def _agree_in_signs(votes, parents, at, size, pose):
    """Return mean|v| sum_d sign(v) p of 16 parents; the sign of 0 is -1."""
    a0 = a1 = zeros(votes)
    for k in range(at, at + size * LANES, 2 * LANES):
        p = load(parents, k)
        a0 = a0 + select(load(votes, k), zeros(votes), p, zeros(votes) - p)
        p = load(parents, k + LANES)
        a1 = a1 + select(load(votes, k + LANES), zeros(votes), p, zeros(votes) - p)
    return (a0 + a1) * _scale(votes, at, size, pose)


@subroutine
def _couple(votes, q, count, rows, shape, xnor, coupling):
    """Compute: softmax over parents of their agreement with the child, without what fills the last block up.

    All agreements come first: a softmax is a long chain of operations, and those of several positions overlap. `shape`
    is that of the parents, [positions, j, d].
    """
    blocks, height, m, _ = votes.shape
    for t in range(count):
        for x in range(blocks):
            k = (x * height + t * rows) * m * LANES
            if xnor is None:
                store(coupling, (t * blocks + x) * LANES, _dot(votes, q, k, rows * m))
            else:
                store(coupling, (t * blocks + x) * LANES, _agree_in_signs(votes, q, k, rows * m, shape[2]))
        for j in range(shape[1], blocks * LANES):  # lanes without a parent get no share
            coupling[t, blocks - 1, j % LANES] = -np.inf
    for t in range(count):
        softmax(coupling, t * blocks * LANES, blocks)


@subroutine
def _add(votes, coupling, count, rows, sums):
    """Compute: sums += c v."""
    blocks, height, m, _ = votes.shape
    for t in range(count):
        for x in range(blocks):
            c = load(coupling, (t * blocks + x) * LANES)
            at = (x * height + t * rows) * m * LANES
            for k in range(at, at + rows * m * LANES, LANES):
                store(sums, k, load(sums, k) + c * load(votes, k))


@subroutine
def _differentiate(votes, g, coupling, count, rows, change):
    """Compute: gradients of the logits, l = c (v . g - sum_j c v . g)."""
    blocks, height, m, _ = votes.shape
    for t in range(count):
        mean = zeros(votes)
        for x in range(blocks):  # a_ij = v_ij . g_j, and their mean over j by the coupling
            d = _dot(votes, g, (x * height + t * rows) * m * LANES, rows * m)
            store(change, (t * blocks + x) * LANES, d)
            mean = mean + d * load(coupling, (t * blocks + x) * LANES)
        whole = total(mean)  # so far each lane had the mean over its own parents
        for k in range(t * blocks * LANES, (t + 1) * blocks * LANES, LANES):
            store(change, k, load(coupling, k) * (load(change, k) - whole))


@subroutine
def _give_votes(votes, q, g, coupling, change, count, rows, d_q):
    """Turn votes into their gradient c g + l q, and add l v to that of q."""
    blocks, height, m, _ = votes.shape
    for t in range(count):
        for x in range(blocks):
            c, l = load(coupling, (t * blocks + x) * LANES), load(change, (t * blocks + x) * LANES)
            at = (x * height + t * rows) * m * LANES
            for k in range(at, at + rows * m * LANES, LANES):  # dq_j += l_ij v_ij before dv_ij takes the vote's place
                store(d_q, k, load(d_q, k) + l * load(votes, k))
                store(votes, k, c * load(g, k) + l * load(q, k))


@subroutine
def _give_signs(votes, q, g, coupling, change, count, rows, pose, d_q):
    """Do the same where votes agree by their signs: l mean|v| sign(v) goes to q, and l mean|v| q to where |v| <= 1."""
    blocks, height, m, _ = votes.shape
    one = zeros(votes) + votes.dtype.type(1)
    for t in range(count):
        for x in range(blocks):
            at = (x * height + t * rows) * m * LANES
            c = load(coupling, (t * blocks + x) * LANES)
            l = load(change, (t * blocks + x) * LANES) * _scale(votes, at, rows * m, pose)
            for k in range(at, at + rows * m * LANES, LANES):
                vote = load(votes, k)
                store(d_q, k, load(d_q, k) + select(vote, zeros(votes), l, zeros(votes) - l))
                # straight through the sign, where |v| <= 1
                follow = select(magnitude(vote), one, zeros(votes), l * load(q, k))
                store(votes, k, c * load(g, k) + follow)
