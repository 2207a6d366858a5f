"""The loops of the step on CPU. Importing this module imports numba.

`forward_loop` is README.md's "What is computed" line by line, `claim_loop` the first pass of "Competition over all
windows", `activation_loop` and `backward_loop` its "Backward". `torchcaps.kernels.simd` says how to read vectors,
`torchcaps.kernels.windows` how arrays lie: a lane is a parent. What has a number for each parent is [blocks, positions,
1, 16]; couplings are [positions, blocks, 16], so that a softmax reads one piece of memory. Where `agreed` is not None
votes are compared with the mean of a state by dot product, and its scale is empty: numba compiles of the two
comparisons the one that is asked for. What a loop works in is handed to it (`cpu.py`): `child` is a child, its votes
and its coupling, and `given`, `found` and `sums` are of the parents at hand, two numbers for each element and one for
each parent.
"""

from __future__ import annotations

import numpy as np

from torchcaps.kernels.em.gradients import (
    differentiate_activation,
    differentiate_agreed,
    differentiate_coupled,
    differentiate_uniform,
)
from torchcaps.kernels.em.sums import LEAST
from torchcaps.kernels.simd import LANES, compiled, exp, highest, load, select, store, subroutine, total, zeros
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
def claim_loop(poses, weight, state, source, rows, together, agreed, first, end, seen, child, given):
    """Compute: seen [b, places, n, 2]: of each child, over all parents that see it, the largest logit and the sum of
    e^(l - it).

    Of the positions from `first` to `end`, whole images, which start from -inf and 0.
    """
    u, votes, coupling = child
    blocks = weight.shape[1]
    for start in range(first, end, together):
        count = min(together, end - start)
        _take(state, start, count, rows, given)  # mu, kappa and q of these positions
        for k in range(source.shape[1]):  # a child i of a window is type n at offset k
            for n in range(poses.shape[2]):
                take_child(poses, source, start, count, k, n, rows, u)
                make_votes(u, weight, k * poses.shape[2] + n, votes)
                _logits(votes, given, count, rows, state, agreed, coupling)  # l_ij, of the parents of these positions
                for t in range(count):
                    image, position = divmod(start + t, source.shape[0])
                    if source[position, k] >= 0:  # a child outside the image has no parents
                        _claim(coupling, t * blocks * LANES, blocks, seen[image, source[position, k], n])


@compiled
def forward_loop(
    poses,
    activations,
    weight,
    state,
    seen,
    source,
    rows,
    together,
    agreed,
    routed,
    whole,
    first,
    end,
    out,
    child,
    given,
    sums,
    a,
):
    """Compute: out: means and sums of squares about them [positions, j, d], and sums of weights [positions, j, 1].

    Of the positions from `first` to `end`. Where not `routed` the activations are the weights, and there is no state.
    """
    u, votes, coupling = child
    for start in range(first, end, together):
        count = min(together, end - start)
        if routed:
            _take(state, start, count, rows, given)  # mu, kappa and q of these positions
        _clear(sums)  # m, S T and T, before the first vote
        for k in range(source.shape[1]):  # a child i of a window is type n at offset k
            for n in range(poses.shape[2]):
                take_child(poses, source, start, count, k, n, rows, u)  # u_i, 0 outside the image
                _take_number(activations, source, start, count, k, n, a)  # a_i, 0 there: such a vote weighs nothing
                make_votes(u, weight, k * poses.shape[2] + n, votes)  # v_ij = u_i W_ij for all j
                if routed:
                    _logits(votes, given, count, rows, state, agreed, coupling)  # l_ij
                    _share(coupling, seen, source, start, count, k, n, whole)  # c_ij = softmax of l_ij
                _gather(votes, coupling, a, count, rows, sums)  # w_ij = c_ij a_i into T, m and S T
        _give(sums, start, count, rows, out)  # `sums.moments` divides by D


@compiled
def activation_loop(
    poses,
    weight,
    state,
    result,
    seen,
    source,
    rows,
    together,
    agreed,
    first,
    end,
    d_activations,
    child,
    given,
    found,
    mean,
    change,
    da,
):
    """Add the gradient of the activations of children that compete over whole images, see `backward_loop`."""
    u, votes, coupling = child
    for start in range(first, end, together):
        count = min(together, end - start)
        _take(state, start, count, rows, given)
        _take(result[1:], start, count, rows, found)  # G, V and H
        take_parents(result[0], start, count, rows, mean)  # m
        for k in range(source.shape[1]):
            for n in range(poses.shape[2]):
                take_child(poses, source, start, count, k, n, rows, u)
                make_votes(u, weight, k * poses.shape[2] + n, votes)
                _logits(votes, given, count, rows, state, agreed, coupling)
                _share(coupling, seen, source, start, count, k, n, True)
                differentiate_activation(votes, coupling, mean, found, count, rows, change, da)
                _give_number(da, source, start, count, k, n, d_activations)  # added: da_i is a sum over windows


@compiled
def backward_loop(
    poses,
    activations,
    weight,
    state,
    result,
    seen,
    source,
    rows,
    together,
    agreed,
    routed,
    whole,
    first,
    end,
    into,
    d_state,
    child,
    given,
    found,
    sums,
    mean,
    d_u,
    change,
    a,
    da,
):
    """Compute: gradients of the positions from `first` to `end`.

    Those of `into`, children, activations and weight, are added to what is there, and with `whole` those of activations
    are there already; d_state are the sums that make those of the state. `result` is the mean and G, V, H of README.md.
    """
    u, votes, coupling = child
    for start in range(first, end, together):
        count = min(together, end - start)
        if routed:
            _take(state, start, count, rows, given)  # mu, kappa and q
        _take(result[1:], start, count, rows, found)  # G, V and H
        take_parents(result[0], start, count, rows, mean)  # m
        _clear(sums)
        for k in range(source.shape[1]):
            for n in range(poses.shape[2]):
                number = k * poses.shape[2] + n
                take_child(poses, source, start, count, k, n, rows, u)
                _take_number(activations, source, start, count, k, n, a)
                make_votes(u, weight, number, votes)  # votes and couplings again, since forward kept none
                if routed:
                    _logits(votes, given, count, rows, state, agreed, coupling)
                    _share(coupling, seen, source, start, count, k, n, whole)
                # `change` is dw_ij; da_i = sum_j c_ij dw_ij over the parents of this position
                differentiate_activation(votes, coupling, mean, found, count, rows, change, da)
                if whole:  # `activation_loop` has summed da_i over all windows, and dl_ij needs that sum
                    _take_number(into[1], source, start, count, k, n, da)
                else:
                    _give_number(da, source, start, count, k, n, into[1])
                # `votes` become dv_ij; what the state's gradient is made of goes to `sums`
                if not routed:
                    differentiate_uniform(votes, a, mean, found, count, rows)
                elif agreed is None:
                    differentiate_coupled(votes, coupling, a, da, change, given, mean, found, count, rows, sums)
                else:
                    differentiate_agreed(votes, coupling, a, da, change, given, mean, found, count, rows, sums)
                differentiate_child(votes, weight, number, d_u)  # du_i = sum_j dv_ij W_ij'
                differentiate_weight(u, votes, number, into[2])  # dW_ij += u_i' dv_ij
                give_child(d_u, source, start, count, k, n, rows, into[0])  # added: windows share children
        if routed:
            _give(sums, start, count, rows, d_state)


@subroutine
def _take(x, start, count, rows, out):
    """Bring three arrays of parents, two of poses and one of numbers, [positions, j, d | 1], into lanes."""
    for k in range(3):  # a loop, and not three calls, so that it is compiled once
        take_parents(x[k], start, count, rows if k < 2 else 1, out[k])


@subroutine
def _give(x, start, count, rows, out):
    """Bring what lies as `_take` leaves it back."""
    for k in range(3):
        give_parents(x[k], start, count, rows if k < 2 else 1, out[k])


@subroutine
def _clear(x):
    for each in x:
        for k in range(0, each.size, LANES):
            store(each, k, zeros(each))


@subroutine
def _take_number(x, source, start, count, k, n, out):
    """Compute: x [b, places, n] of child n at offset k -> out [positions], 0 outside the image."""
    for t in range(count):
        image, position = divmod(start + t, source.shape[0])
        place = source[position, k]
        out[t] = x[image, place, n] if place >= 0 else 0


@subroutine
def _give_number(number, source, start, count, k, n, out):
    """Add number [positions] to out [b, places, n]."""
    for t in range(count):
        image, position = divmod(start + t, source.shape[0])
        place = source[position, k]
        if place >= 0:
            out[image, place, n] += number[t]


@subroutine
def _logits(votes, given, count, rows, state, agreed, coupling):
    """Compute: logits of the votes for the parents of `state`, of which `given` has those at hand; -inf beyond the
    last.
    """
    if agreed is None:
        _densities(votes, given, count, rows, coupling)
    else:
        _agreements(votes, given, count, rows, coupling)
    for j in range(state[0].shape[1], coupling.shape[1] * LANES):  # lanes without a parent: next to no share
        for t in range(count):
            coupling[t, coupling.shape[1] - 1, j % LANES] = -np.inf


@subroutine
def _densities(votes, given, count, rows, logits):
    """Log density of the votes, plus log prior: prior - sum_d (scale (v - mean))^2; `given` has the three."""
    mean, scale, prior = given
    blocks, height, m, _ = votes.shape
    for t in range(count):
        for x in range(blocks):
            at = (x * height + t * rows) * m * LANES  # of v_ij of 16 parents at position t, and of mu_j and kappa_j
            a0 = a1 = zeros(votes)  # even and odd elements d, so that neither sum waits for the other
            for k in range(at, at + rows * m * LANES, 2 * LANES):  # m is even: `parents_to_lanes` fills it up
                # scaled before it is squared: the square of a difference may exceed what float32 holds
                apart = load(scale, k) * (load(votes, k) - load(mean, k))
                a0 = a0 + apart * apart
                apart = load(scale, k + LANES) * (load(votes, k + LANES) - load(mean, k + LANES))
                a1 = a1 + apart * apart
            logit = load(prior, (x * prior.shape[1] + t) * LANES) - (a0 + a1)
            store(logits, (t * blocks + x) * LANES, logit)


@subroutine
def _agreements(votes, given, count, rows, logits):
    """Compute: dot products of the votes with the parents, plus log prior; of `given` the mean and the prior count."""
    query, _, prior = given
    blocks, height, m, _ = votes.shape
    for t in range(count):
        for x in range(blocks):
            at = (x * height + t * rows) * m * LANES
            a0 = load(prior, (x * prior.shape[1] + t) * LANES)  # q_j, to which one of the two sums is added
            a1 = zeros(votes)
            for k in range(at, at + rows * m * LANES, 2 * LANES):
                a0 = a0 + load(query, k) * load(votes, k)
                a1 = a1 + load(query, k + LANES) * load(votes, k + LANES)
            store(logits, (t * blocks + x) * LANES, a0 + a1)


@subroutine
def _claim(logits, at, blocks, seen):
    """Add e^logit of `blocks` vectors from `at` on to the sum in seen (largest logit, sum over e^it)."""
    top = load(logits, at)
    for k in range(at + LANES, at + blocks * LANES, LANES):
        logit = load(logits, k)
        top = select(logit, top, logit, top)
    most, whole = highest(top), zeros(logits)
    for k in range(at, at + blocks * LANES, LANES):
        whole = whole + exp(load(logits, k) - most)
    # the sum of e^(l - M) over all windows so far, with M the largest: the sum by the smaller M is moved to the larger
    if most > seen[0]:
        seen[1] = seen[1] * np.exp(seen[0] - most) + total(whole)
        seen[0] = most
    else:
        seen[1] += total(whole) * np.exp(most - seen[0])


@subroutine
def _share(coupling, seen, source, start, count, k, n, whole):
    """Compute: logits -> softmax over the parents of the position, or of all windows that see the child."""
    blocks = coupling.shape[1]
    for t in range(count):
        at = t * blocks * LANES
        if not whole:
            softmax(coupling, at, blocks)
            continue
        image, position = divmod(start + t, source.shape[0])
        place = source[position, k]
        if place < 0:  # outside the image
            for v in range(at, at + blocks * LANES, LANES):
                store(coupling, v, zeros(coupling))
            continue
        # e^(l - M) / sum e^(l - M), of the two numbers that `claim_loop` has left for the child
        most, share = seen[image, place, n, 0], 1 / seen[image, place, n, 1]
        for v in range(at, at + blocks * LANES, LANES):
            store(coupling, v, exp(load(coupling, v) - most) * share)


@subroutine
def _gather(votes, coupling, a, count, rows, sums):
    """Take one more vote into each mean and into the sum of squares about it, which so is never uncentred.

    Welford's update: T += w, step = w / T, m += step e and S T += step T_before e^2, of e = v - m before.
    """
    mean, square, weights = sums
    blocks, height, m, _ = votes.shape
    least = zeros(votes) + votes.dtype.type(LEAST)
    one = zeros(votes) + votes.dtype.type(1)
    for t in range(count):
        for x in range(blocks):
            w = load(coupling, (t * blocks + x) * LANES) * a[t]  # w_ij = c_ij a_i
            at = (x * weights.shape[1] + t) * LANES
            before = load(weights, at)
            whole = before + w
            store(weights, at, whole)
            step = w / select(whole, least, whole, one)  # no division by 0 where nothing has had a weight yet
            rest = step * before
            at = (x * height + t * rows) * m * LANES
            for k in range(at, at + rows * m * LANES, LANES):
                old = load(mean, k)
                apart = load(votes, k) - old
                store(mean, k, old + step * apart)
                store(square, k, load(square, k) + rest * apart * apart)
