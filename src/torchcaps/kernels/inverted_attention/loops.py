"""The loops of the step on CPU. Importing this module imports numba.

`forward_loop` is README.md's "What is computed" line by line, and `backward_loop` its "Backward".
`torchcaps.kernels.simd` says how to read vectors, `torchcaps.kernels.windows` how arrays lie. The queries of the
parents, their sums and their gradients are [blocks, positions * rows, m, 16].
"""

from __future__ import annotations

import numpy as np

from torchcaps.kernels.simd import LANES, compiled, load, store, total, zeros
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
def forward_loop(poses, weight, query, source, rows, together, first, end, out):
    """Compute: out [positions, j, d] of the positions from `first` to `end`, `together` at a time."""
    _, blocks, columns, m, _ = weight.shape
    window, types = source.shape[1], poses.shape[2]
    parents = query.shape[1]
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
                _couple(votes, q, count, rows, parents, coupling)  # c_ij = softmax over j of v_ij . q_j
                _add(votes, coupling, count, rows, sums)  # s_j += c_ij v_ij
        give_parents(sums, start, count, rows, out)


@compiled
def backward_loop(gradient, poses, weight, query, source, rows, together, first, end, d_poses, d_weight, d_query):
    """Compute: gradients of the positions from `first` to `end`; those of children and weight are added to what is
    there.
    """
    _, blocks, columns, m, _ = weight.shape
    window, types = source.shape[1], poses.shape[2]
    parents = query.shape[1]
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
                _couple(votes, q, count, rows, parents, coupling)
                _differentiate(votes, q, g, coupling, count, rows, change, d_q)  # `votes` now holds dv_ij
                differentiate_child(votes, weight, child, d_u)  # du_i = sum_j dv_ij W_ij'
                differentiate_weight(u, votes, child, d_weight)  # dW_ij += u_i' dv_ij
                give_child(d_u, source, start, count, k, n, rows, d_poses)  # added: windows share children
        give_parents(d_q, start, count, rows, d_query)


@compiled
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


@compiled
def _couple(votes, q, count, rows, parents, coupling):
    """Compute: softmax over parents of their agreement with the child, without what fills the last block up.

    All agreements come first: a softmax is a long chain of operations, and those of several positions overlap.
    """
    blocks, height, m, _ = votes.shape
    for t in range(count):
        for x in range(blocks):
            k = (x * height + t * rows) * m * LANES
            store(coupling, (t * blocks + x) * LANES, _dot(votes, q, k, rows * m))
        for j in range(parents, blocks * LANES):  # lanes without a parent get no share
            coupling[t, blocks - 1, j % LANES] = -np.inf
    for t in range(count):
        softmax(coupling, t * blocks * LANES, blocks)


@compiled
def _add(votes, coupling, count, rows, sums):
    """Compute: sums += c v."""
    blocks, height, m, _ = votes.shape
    for t in range(count):
        for x in range(blocks):
            c = load(coupling, (t * blocks + x) * LANES)
            at = (x * height + t * rows) * m * LANES
            for k in range(at, at + rows * m * LANES, LANES):
                store(sums, k, load(sums, k) + c * load(votes, k))


@compiled
def _differentiate(votes, q, g, coupling, count, rows, change, d_q):
    """Turn votes into their gradient c g + l q, and add l v to that of q: l = c (v . g - sum_j c v . g)."""
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
    for t in range(count):
        for x in range(blocks):
            c, l = load(coupling, (t * blocks + x) * LANES), load(change, (t * blocks + x) * LANES)
            at = (x * height + t * rows) * m * LANES
            for k in range(at, at + rows * m * LANES, LANES):  # dq_j += l_ij v_ij before dv_ij takes the vote's place
                store(d_q, k, load(d_q, k) + l * load(votes, k))
                store(votes, k, c * load(g, k) + l * load(q, k))
