"""What the gradient of a vote and of its coupling is made of. See README.md; importing this module imports numba.

Names are those of README.md's "Backward": m, G, V and H are `mean`, `of_mean`, `of_square` and `of_weight`; mu, kappa
and q those of `given`; y = v - m, e = v - mu. Arrays lie as in `loops.py`: `at` counts through [blocks, positions *
rows, m, 16] for the first parent, row and element of a position, and `place` through [positions, blocks, 16].
"""

from __future__ import annotations

from torchcaps.kernels.simd import LANES, load, store, subroutine, total, zeros


@subroutine
def differentiate_activation(votes, coupling, mean, found, count, rows, change, da):
    """Compute: change = gradient of the weight a c of each pair, H + sum_d y (G + V y), y = v - mean; da = sum_j c
    change.
    """
    of_mean, of_square, of_weight = found
    blocks, height, m, _ = votes.shape
    for t in range(count):
        whole = zeros(votes)
        for x in range(blocks):
            at = (x * height + t * rows) * m * LANES
            a0 = load(of_weight, (x * of_weight.shape[1] + t) * LANES)  # H_j, to which one of two sums is added
            a1 = zeros(votes)
            for k in range(at, at + rows * m * LANES, 2 * LANES):
                y = load(votes, k) - load(mean, k)
                a0 = a0 + y * (load(of_mean, k) + load(of_square, k) * y)
                y = load(votes, k + LANES) - load(mean, k + LANES)
                a1 = a1 + y * (load(of_mean, k + LANES) + load(of_square, k + LANES) * y)
            place = (t * blocks + x) * LANES
            store(change, place, a0 + a1)  # dw_ij
            whole = whole + (a0 + a1) * load(coupling, place)
        da[t] = total(whole)  # sum over blocks so far; over lanes, it is the sum over all parents


@subroutine
def differentiate_uniform(votes, a, mean, found, count, rows):
    """Turn votes into their gradient a (G + 2 V y)."""
    of_mean, of_square, _ = found
    blocks, height, m, _ = votes.shape
    for t in range(count):
        for x in range(blocks):
            at = (x * height + t * rows) * m * LANES
            for k in range(at, at + rows * m * LANES, LANES):
                vy = load(of_square, k) * (load(votes, k) - load(mean, k))
                store(votes, k, (load(of_mean, k) + (vy + vy)) * a[t])


@subroutine
def differentiate_coupled(votes, coupling, a, da, change, given, mean, found, count, rows, sums):
    """Turn votes into their gradient a c (G + 2 V y) - 2 s^2 l e, where l = a c (change - da) is that of the logit.

    e = v - the mean before, of given = mean, s and prior. To sums go l s e, l s e^2 and l.
    """
    before, scale, _ = given
    of_mean, of_square, _ = found
    first, second, d_prior = sums
    blocks, height, m, _ = votes.shape
    for t in range(count):
        for x in range(blocks):
            place = (t * blocks + x) * LANES
            w = load(coupling, place) * a[t]  # w_ij
            l = w * (load(change, place) - da[t])  # dl_ij = w_ij (dw_ij - da_i)
            at = (x * d_prior.shape[1] + t) * LANES
            store(d_prior, at, load(d_prior, at) + l)  # dq_j += dl_ij
            at = (x * height + t * rows) * m * LANES
            for k in range(at, at + rows * m * LANES, LANES):
                v = load(votes, k)
                e, vy = v - load(before, k), load(of_square, k) * (v - load(mean, k))
                s = load(scale, k)
                le = l * (s * e)  # s e first: how many deviations, where a distance may be any number
                store(first, k, load(first, k) + le)  # `sums.of_parents` makes dmu = 2 kappa times this sum
                store(second, k, load(second, k) + le * e)  # and dkappa = -2 times this one
                store(votes, k, w * (load(of_mean, k) + (vy + vy)) - (le + le) * s)  # dv_ij takes the vote's place


@subroutine
def differentiate_agreed(votes, coupling, a, da, change, given, mean, found, count, rows, sums):
    """Turn votes into their gradient a c (G + 2 V y) + l q, where l = a c (change - da) is that of the logit.

    q is the first of given, with which votes were compared by dot product. To sums go l v and l.
    """
    query, _, _ = given
    of_mean, of_square, _ = found
    first, _, d_prior = sums
    blocks, height, m, _ = votes.shape
    for t in range(count):
        for x in range(blocks):
            place = (t * blocks + x) * LANES
            w = load(coupling, place) * a[t]  # w_ij
            l = w * (load(change, place) - da[t])  # dl_ij = w_ij (dw_ij - da_i)
            at = (x * d_prior.shape[1] + t) * LANES
            store(d_prior, at, load(d_prior, at) + l)  # dq_j += dl_ij
            at = (x * height + t * rows) * m * LANES
            for k in range(at, at + rows * m * LANES, LANES):
                v = load(votes, k)
                vy = load(of_square, k) * (v - load(mean, k))
                store(first, k, load(first, k) + l * v)  # dmu_j += dl_ij v_ij
                store(votes, k, w * (load(of_mean, k) + (vy + vy)) + l * load(query, k))
