"""The loops of the sums on CPU. Importing this module imports numba.

`forward_loop` is README.md's formulas in their order, `backward_loop` its "Backward". `torchcaps.kernels.simd` says
how to read vectors, `torchcaps.kernels.windows` how arrays lie: a lane is a parent. T, Q and their gradients g and h
are [blocks, positions * rows, m, 16]; scale and shift, and their gradients, [i | 1, blocks, rows, m, 16]. A child that
is outside the image adds nothing, though its vote of 0 would be the shift.
"""

from __future__ import annotations

from torchcaps.kernels.lanes import clear
from torchcaps.kernels.simd import LANES, compiled, load, root, select, store, subroutine, zeros
from torchcaps.kernels.windows import (
    differentiate_child,
    differentiate_weight,
    give_child,
    give_parents,
    make_votes,
    take_child,
    take_parents,
)


@compiled
def forward_loop(
    poses,
    weight,
    scale,
    shift,
    source,
    rows,
    together,
    l2,
    eps,
    first,
    end,
    out_total,
    out_squares,
    u,
    votes,
    total,
    squares,
):
    """Compute: out_total and out_squares [positions, j, d] of the positions from `first` to `end`, `together` at a
    time.
    """
    for start in range(first, end, together):
        count = min(together, end - start)
        clear(total, 0, total.size // LANES)
        clear(squares, 0, squares.size // LANES)
        for k in range(source.shape[1]):  # a child i of a window is type n at offset k
            for n in range(poses.shape[2]):
                child = k * poses.shape[2] + n
                take_child(poses, source, start, count, k, n, rows, u)  # u_i of these positions
                make_votes(u, weight, child, votes)  # v_ij = u_i W_ij for all j, over those of the last child
                pair = child if len(scale) > 1 else 0
                _add(votes, scale, shift, pair, source, start, count, k, rows, l2, eps, total, squares)
        give_parents(total, start, count, rows, out_total)
        give_parents(squares, start, count, rows, out_squares)


@compiled
def backward_loop(
    of_total,
    of_squares,
    poses,
    weight,
    scale,
    shift,
    source,
    rows,
    together,
    l2,
    eps,
    first,
    end,
    d_poses,
    d_weight,
    d_scale,
    d_shift,
    u,
    d_u,
    votes,
    g,
    h,
):
    """Compute: gradients of the positions from `first` to `end`, which are added to what is there."""
    for start in range(first, end, together):
        count = min(together, end - start)
        take_parents(of_total, start, count, rows, g)
        take_parents(of_squares, start, count, rows, h)
        for k in range(source.shape[1]):
            for n in range(poses.shape[2]):
                child = k * poses.shape[2] + n
                take_child(poses, source, start, count, k, n, rows, u)
                make_votes(u, weight, child, votes)  # again, since forward kept none
                pair = child if len(scale) > 1 else 0
                given = scale, shift, pair, source, start, count, k, rows, l2, eps
                _differentiate(votes, given, g, h, d_scale, d_shift)  # `votes` now holds dv_ij
                differentiate_child(votes, weight, child, d_u)  # du_i = sum_j dv_ij W_ij'
                differentiate_weight(u, votes, child, d_weight)  # dW_ij += u_i' dv_ij
                give_child(d_u, source, start, count, k, n, rows, d_poses)  # added: windows share children


@subroutine
def _add(votes, scale, shift, pair, source, start, count, k, rows, l2, eps, total, squares):
    """Compute: total += c x and squares += (c x)^2; x = scale v + shift takes the vote's place."""
    blocks, height, m, _ = votes.shape
    size = rows * m * LANES
    one, floor = zeros(votes) + votes.dtype.type(1), zeros(votes) + votes.dtype.type(eps)
    for t in range(count):
        if source[(start + t) % len(source), k] < 0:
            continue
        for x in range(blocks):
            at, to = (x * height + t * rows) * m * LANES, (pair * blocks + x) * size
            a0 = a1 = zeros(votes)  # |x|^2 of even and odd elements d, so that neither sum waits for the other
            for e in range(0, size, 2 * LANES):  # m is even: `parents_to_lanes` fills it up
                left = load(votes, at + e) * load(scale, to + e) + load(shift, to + e)
                right = load(votes, at + e + LANES) * load(scale, to + e + LANES) + load(shift, to + e + LANES)
                store(votes, at + e, left)
                store(votes, at + e + LANES, right)
                a0, a1 = a0 + left * left, a1 + right * right
            square = a0 + a1
            c = one / root(select(floor, square, floor, square)) if l2 else one
            for e in range(at, at + size, LANES):
                y = load(votes, e) * c
                store(total, e, load(total, e) + y)
                store(squares, e, load(squares, e) + y * y)


@subroutine
def _differentiate(votes, given, g, h, d_scale, d_shift):
    """Turn votes into their gradient scale dx, and add v dx and dx to those of scale and shift.

    dx = c g + 2 c^2 x h, less c^3 x times dc = sum_d (g x + 2 c x^2 h).
    """
    scale, shift, pair, source, start, count, k, rows, l2, eps = given
    blocks, height, m, _ = votes.shape
    size = rows * m * LANES
    one, floor = zeros(votes) + votes.dtype.type(1), zeros(votes) + votes.dtype.type(eps)
    for t in range(count):
        if source[(start + t) % len(source), k] < 0:
            continue  # its vote is 0 already, and so its gradient
        for x in range(blocks):
            at, to = (x * height + t * rows) * m * LANES, (pair * blocks + x) * size
            c, follow = one, zeros(votes)
            if l2:
                square = by_total = by_squares = zeros(votes)  # sums over d of x^2, g x and h x^2
                for e in range(0, size, LANES):
                    y = load(votes, at + e) * load(scale, to + e) + load(shift, to + e)
                    double = y * y
                    square = square + double
                    by_total = by_total + load(g, at + e) * y
                    by_squares = by_squares + load(h, at + e) * double
                c = one / root(select(floor, square, floor, square))
                change = by_total + c * (by_squares + by_squares)  # dc
                # c = |x|^-1 has the gradient -c^3 x; at the floor it is a constant
                follow = select(square, floor, change * c * c * c, zeros(votes))
            for e in range(0, size, LANES):
                v, a = load(votes, at + e), load(scale, to + e)
                y = v * a + load(shift, to + e)
                bend = load(h, at + e) * y
                step = c * (load(g, at + e) + c * (bend + bend)) - follow * y  # dx
                store(votes, at + e, a * step)
                store(d_scale, to + e, load(d_scale, to + e) + v * step)
                store(d_shift, to + e, load(d_shift, to + e) + step)
