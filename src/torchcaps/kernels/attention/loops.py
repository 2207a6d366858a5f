"""The loops of the step on CPU. Importing this module imports numba.

Arrays are contiguous; a place in one is counted through all its dimensions. `u` is a child of the positions at hand,
[positions * rows, c], zeros where a window leaves the image. What is [blocks, positions * rows, m, 16] has 16 parents
trailing: votes, and the queries of the parents, their sums and the gradients. Parents beyond the last are zeros.
"""

from __future__ import annotations

import numpy as np

from torchcaps.kernels.simd import LANES, compiled, exp, highest, load, select, spread, store, total, zeros


@compiled
def forward_loop(poses, weight, query, source, rows, together, first, end, out):
    """out [positions, j, d] of the positions from `first` to `end`, `together` at a time."""
    _, blocks, columns, m, _ = weight.shape
    window, types = source.shape[1], poses.shape[2]
    parents = query.shape[1]
    u = np.zeros((together * rows, columns), poses.dtype)
    q = np.zeros((blocks, together * rows, m, LANES), poses.dtype)
    votes, sums = np.zeros_like(q), np.zeros_like(q)
    coupling = np.empty((together, blocks, LANES), poses.dtype)
    for start in range(first, end, together):
        count = min(together, end - start)
        _take_parents(query, start, count, rows, q)
        sums[:] = 0
        for k in range(window):
            for n in range(types):
                _take_child(poses, source, start, count, k, n, rows, u)
                _vote(u, weight, k * types + n, votes)
                _couple(votes, q, count, rows, parents, coupling)
                _add(votes, coupling, count, rows, sums)
        _give_parents(sums, start, count, rows, out)


@compiled
def backward_loop(gradient, poses, weight, query, source, rows, together, first, end, d_poses, d_weight, d_query):
    """Gradients of the positions from `first` to `end`; those of children and weight are added to what is there."""
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
        _take_parents(query, start, count, rows, q)
        _take_parents(gradient, start, count, rows, g)
        d_q[:] = 0
        for k in range(window):
            for n in range(types):
                child = k * types + n
                _take_child(poses, source, start, count, k, n, rows, u)
                _vote(u, weight, child, votes)
                _couple(votes, q, count, rows, parents, coupling)
                _differentiate(votes, q, g, coupling, count, rows, change, d_q)
                _differentiate_child(votes, weight, child, d_u)
                _differentiate_weight(u, votes, child, d_weight)
                _give_child(d_u, source, start, count, k, n, rows, d_poses)
        _give_parents(d_q, start, count, rows, d_query)


@compiled
def _take_parents(x, start, count, rows, out):
    """x [positions, j, rows * m] -> out; positions beyond `count` are zeros."""
    _, parents, pose = x.shape
    m = pose // rows
    for t in range(out.shape[1] // rows):
        for j in range(parents):
            for r in range(rows):
                for s in range(m):
                    value = x[start + t, j, r * m + s] if t < count else 0
                    out[j // LANES, t * rows + r, s, j % LANES] = value


@compiled
def _give_parents(x, start, count, rows, out):
    """The way back: x [blocks, positions * rows, m, 16] -> out [positions, j, d]."""
    _, parents, pose = out.shape
    m = pose // rows
    for t in range(count):
        for j in range(parents):
            for r in range(rows):
                for s in range(m):
                    out[start + t, j, r * m + s] = x[j // LANES, t * rows + r, s, j % LANES]


@compiled
def _take_child(poses, source, start, count, k, n, rows, u):
    """Child n at offset k of the windows of the positions from `start` on; absent ones are zeros."""
    columns = poses.shape[3] // rows
    for t in range(u.shape[0] // rows):
        image, position = divmod(start + t, source.shape[0])
        place = source[position, k] if t < count else -1
        if place < 0:
            u[t * rows : (t + 1) * rows] = 0
            continue
        for r in range(rows):
            for c in range(columns):
                u[t * rows + r, c] = poses[image, place, n, r * columns + c]


@compiled
def _give_child(d_u, source, start, count, k, n, rows, d_poses):
    """Add the gradient of `_take_child`'s result to that of the children."""
    columns = d_poses.shape[3] // rows
    for t in range(count):
        image, position = divmod(start + t, source.shape[0])
        place = source[position, k]
        if place >= 0:
            for r in range(rows):
                for c in range(columns):
                    d_poses[image, place, n, r * columns + c] += d_u[t * rows + r, c]


@compiled
def _vote(u, weight, child, votes):
    """votes = u W of one child, four rows by two columns at a time."""
    blocks, height, m, _ = votes.shape
    columns = u.shape[1]
    for x in range(blocks):
        w = (child * blocks + x) * columns * m * LANES
        for r in range(0, height, 4):
            for s in range(0, m, 2):
                a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = zeros(votes)
                for c in range(columns):
                    left, right = load(weight, w + (c * m + s) * LANES), load(weight, w + (c * m + s + 1) * LANES)
                    k = r * columns + c
                    y = spread(u, k)
                    a0, b0 = a0 + y * left, b0 + y * right
                    y = spread(u, k + columns)
                    a1, b1 = a1 + y * left, b1 + y * right
                    y = spread(u, k + 2 * columns)
                    a2, b2 = a2 + y * left, b2 + y * right
                    y = spread(u, k + 3 * columns)
                    a3, b3 = a3 + y * left, b3 + y * right
                k = ((x * height + r) * m + s) * LANES
                step = m * LANES
                store(votes, k, a0)
                store(votes, k + LANES, b0)
                store(votes, k + step, a1)
                store(votes, k + step + LANES, b1)
                store(votes, k + 2 * step, a2)
                store(votes, k + 2 * step + LANES, b2)
                store(votes, k + 3 * step, a3)
                store(votes, k + 3 * step + LANES, b3)


@compiled
def _dot(votes, parents, at, size):
    """sum_d v p of 16 parents, whose `size` elements stand from `at` on; four sums hide the wait for each other."""
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
    """Softmax over parents of their agreement with the child, without what fills the last block up.

    All agreements come first: a softmax is a long chain of operations, and those of several positions overlap.
    """
    blocks, height, m, _ = votes.shape
    for t in range(count):
        for x in range(blocks):
            k = (x * height + t * rows) * m * LANES
            store(coupling, (t * blocks + x) * LANES, _dot(votes, q, k, rows * m))
        for j in range(parents, blocks * LANES):
            coupling[t, blocks - 1, j % LANES] = -np.inf
    for t in range(count):
        _softmax(coupling, t * blocks * LANES, blocks)


@compiled
def _softmax(coupling, at, blocks):
    """In place, over the numbers of `blocks` vectors from `at` on."""
    end = at + blocks * LANES
    top = load(coupling, at)
    for k in range(at + LANES, end, LANES):
        logit = load(coupling, k)
        top = select(logit, top, logit, top)
    most, whole = highest(top), zeros(coupling)
    for k in range(at, end, LANES):
        e = exp(load(coupling, k) - most)
        store(coupling, k, e)
        whole = whole + e
    share = 1 / total(whole)
    for k in range(at, end, LANES):
        store(coupling, k, load(coupling, k) * share)


@compiled
def _add(votes, coupling, count, rows, sums):
    """sums += c v."""
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
        for x in range(blocks):
            d = _dot(votes, g, (x * height + t * rows) * m * LANES, rows * m)
            store(change, (t * blocks + x) * LANES, d)
            mean = mean + d * load(coupling, (t * blocks + x) * LANES)
        whole = total(mean)
        for k in range(t * blocks * LANES, (t + 1) * blocks * LANES, LANES):
            store(change, k, load(coupling, k) * (load(change, k) - whole))
    for t in range(count):
        for x in range(blocks):
            c, l = load(coupling, (t * blocks + x) * LANES), load(change, (t * blocks + x) * LANES)
            at = (x * height + t * rows) * m * LANES
            for k in range(at, at + rows * m * LANES, LANES):
                store(d_q, k, load(d_q, k) + l * load(votes, k))
                store(votes, k, c * load(g, k) + l * load(q, k))


@compiled
def _differentiate_child(d_votes, weight, child, d_u):
    """d_u = d_votes W', summed over parents, four rows by two columns at a time."""
    blocks, height, m, _ = d_votes.shape
    columns = d_u.shape[1]
    step = m * LANES
    for r in range(0, height, 4):
        for c in range(0, columns, 2):
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = zeros(d_votes)
            for x in range(blocks):
                w = ((child * blocks + x) * columns + c) * step
                v = (x * height + r) * step
                for k in range(0, step, LANES):
                    left, right = load(weight, w + k), load(weight, w + step + k)
                    y = load(d_votes, v + k)
                    a0, b0 = a0 + y * left, b0 + y * right
                    y = load(d_votes, v + step + k)
                    a1, b1 = a1 + y * left, b1 + y * right
                    y = load(d_votes, v + 2 * step + k)
                    a2, b2 = a2 + y * left, b2 + y * right
                    y = load(d_votes, v + 3 * step + k)
                    a3, b3 = a3 + y * left, b3 + y * right
            d_u[r, c], d_u[r, c + 1] = total(a0), total(b0)
            d_u[r + 1, c], d_u[r + 1, c + 1] = total(a1), total(b1)
            d_u[r + 2, c], d_u[r + 2, c + 1] = total(a2), total(b2)
            d_u[r + 3, c], d_u[r + 3, c + 1] = total(a3), total(b3)


@compiled
def _differentiate_weight(u, d_votes, child, d_weight):
    """d_weight += u' d_votes, four columns of u by two of the votes at a time."""
    blocks, height, m, _ = d_votes.shape
    columns = u.shape[1]
    step = m * LANES
    for x in range(blocks):
        for c in range(0, columns, 4):
            for s in range(0, m, 2):
                k = ((child * blocks + x) * columns + c) * step + s * LANES
                a0, b0 = load(d_weight, k), load(d_weight, k + LANES)
                a1, b1 = load(d_weight, k + step), load(d_weight, k + step + LANES)
                a2, b2 = load(d_weight, k + 2 * step), load(d_weight, k + 2 * step + LANES)
                a3, b3 = load(d_weight, k + 3 * step), load(d_weight, k + 3 * step + LANES)
                for r in range(height):
                    v = ((x * height + r) * m + s) * LANES
                    left, right = load(d_votes, v), load(d_votes, v + LANES)
                    y = spread(u, r * columns + c)
                    a0, b0 = a0 + y * left, b0 + y * right
                    y = spread(u, r * columns + c + 1)
                    a1, b1 = a1 + y * left, b1 + y * right
                    y = spread(u, r * columns + c + 2)
                    a2, b2 = a2 + y * left, b2 + y * right
                    y = spread(u, r * columns + c + 3)
                    a3, b3 = a3 + y * left, b3 + y * right
                store(d_weight, k, a0)
                store(d_weight, k + LANES, b0)
                store(d_weight, k + step, a1)
                store(d_weight, k + step + LANES, b1)
                store(d_weight, k + 2 * step, a2)
                store(d_weight, k + 2 * step + LANES, b2)
                store(d_weight, k + 3 * step, a3)
                store(d_weight, k + 3 * step + LANES, b3)
