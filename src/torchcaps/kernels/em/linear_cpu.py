"""The step on CPU where one window sees all children, as a linear layer's: 16 images side by side. See README.md.

`_forward` is README.md's "What is computed", `_backward` its "Backward". A lane is an image, as in the kernel of
dynamic routing: softmax over parents and sums over elements are plain loops, and nothing is summed across lanes but the
gradients of the weights. What belongs to the parents is [blocks, j, d, 16], or [blocks, j, 16] where a parent has one
number, a block being 16 images; the votes of one child are [j, blocks, d, 16], so that those for one parent lie
together. Threads have a run of children and sums of their own, which are joined here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchcaps.kernels.em.inputs import Geometry, Inputs
from torchcaps.kernels.em.sums import LEAST, Result, joined
from torchcaps.kernels.lanes import (
    BLOCK,
    arrays,
    back,
    clear,
    dot,
    from_lanes,
    gather,
    outer,
    rooms,
    scatter,
    softmax,
    to_lanes,
    vote,
)
from torchcaps.kernels.simd import LANES, compiled, load, select, store, subroutine, zeros
from torchcaps.kernels.threads import ranges, run

GROUP = 8  # children that are gathered at once
NEAR = 2**17  # bytes of the votes of one child that backward has at a time: what a second cache holds beside others


def forward(inputs: Inputs, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `cpu.forward`."""
    poses, weight, activations, state = _in_lanes(inputs)
    parts, children = activations.shape[:2]
    parents, pose = len(weight), geometry.rows * weight.shape[-1]
    spans = ranges(children)
    shape = len(spans), parts, parents, pose, LANES
    sums = poses.new_zeros(shape), poses.new_zeros(shape), poses.new_zeros(*shape[:3], LANES)
    given, into = (*arrays(poses, activations, weight), tuple(arrays(*state))), arrays(*sums)
    shapes = (BLOCK, (GROUP, parts, poses.shape[2], LANES), (parents, 1, pose, LANES), (parents, LANES))
    how = geometry.rows, inputs.mean is not None, geometry.dot or None

    def work(part: int, first: int, end: int) -> None:
        space = rooms(into[0], *shapes)
        _forward(*given, *how, first, end, tuple(each[part] for each in into), *space)

    run(work, spans)
    centre, square, total = joined(*sums[:2], sums[2].unsqueeze(3))
    found = (from_lanes(each, len(poses)).unsqueeze(1) for each in (centre, square, total))
    return *found, poses.new_empty(0, 0, 0, 2)  # pyright: ignore[reportReturnType]


def backward(given: Result, inputs: Inputs, geometry: Geometry) -> list[Tensor]:
    """See `cpu.backward`."""
    poses, weight, activations, state = _in_lanes(inputs)
    parts, children = activations.shape[:2]
    parents, pose, size = len(weight), geometry.rows * weight.shape[-1], poses.shape[2]
    spans = ranges(children)
    near = max(1, min(parts, NEAR // (parents * pose * LANES * poses.itemsize)))  # blocks of images at a time
    outs = torch.empty_like(poses), torch.empty_like(activations), torch.zeros_like(weight)
    sums = [x.new_zeros(len(spans), *x.shape) for x in state]
    result = tuple(arrays(*(to_lanes(x.squeeze(1)) for x in given[:3]), to_lanes(given.of_weight.flatten(1))))
    x, into = (*arrays(poses, activations, weight), tuple(arrays(*state))), arrays(*sums)
    lanes = GROUP, parts, size, LANES
    shapes = (BLOCK, lanes, lanes, (parents, near, pose, LANES), (parents, LANES), (parents, LANES), weight.shape[2:])
    how, found = (geometry.rows, inputs.mean is not None, geometry.dot or None), tuple(arrays(*outs))

    def work(part: int, first: int, end: int) -> None:
        space = rooms(into[0], *shapes)
        _backward(*x, result, *how, first, end, found, tuple(each[part] for each in into), *space)

    run(work, spans)
    of_state = [from_lanes(each.sum(0), len(poses)) for each in sums]
    of = [
        each.view(x.shape)
        for each, x in zip(of_state, (inputs.mean, inputs.scale, inputs.prior), strict=True)
        if x is not None
    ]
    gradients = outs[0], outs[2], from_lanes(outs[1], len(poses))
    whole = (inputs.poses, inputs.weight, inputs.activations)
    return [*(each.view(x.shape) for each, x in zip(gradients, whole, strict=True)), *of]


def _in_lanes(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Return poses [b, i, r c], weight [j, i, c, m], activations [blocks, i, 16] and the state in lanes, empty where
    there is none.
    """
    poses, weight, activations, mean, scale, prior = inputs
    none = poses.new_empty(0, 0, 0, LANES)
    state = [none if each is None else to_lanes(each.squeeze(1)) for each in (mean, scale)]
    state.append(poses.new_empty(0, 0, LANES) if prior is None else to_lanes(prior.squeeze(1)))
    return poses.flatten(1, 3), weight.flatten(1, 3), to_lanes(activations.flatten(1)), state


@compiled
def _forward(poses, activations, weight, state, rows, routed, agreed, first, end, sums, block, u, votes, coupling):
    """Compute: sums: means and sums of squares about them [blocks, j, d, 16], and sums of weights [blocks, j, 16], of
    the children from `first` to `end`.
    """
    parts, children, _ = activations.shape
    size = poses.shape[2]
    _even(coupling)  # where not `routed` the activations are the weights
    for start in range(first, end, GROUP):
        count = min(GROUP, end - start)
        gather(poses, start, count, u, block)  # several children at once: transposing takes 16 numbers of an image
        for n in range(parts):  # blocks outside: the sums of 16 images stay near while children pass
            for i in range(count):
                _votes(u, (i * parts + n) * size * LANES, weight, start + i, rows, 0, votes)
                if routed:
                    _couple(votes, 0, state, n, agreed, coupling)
                _gather(votes, coupling, load(activations, (n * children + start + i) * LANES), n, sums)


@compiled
def _backward(
    poses,
    activations,
    weight,
    state,
    result,
    rows,
    routed,
    agreed,
    first,
    end,
    out,
    d_state,
    block,
    u,
    du,
    votes,
    coupling,
    change,
    dw,
):
    """Compute: out: gradients of the children from `first` to `end`, their activations and weights, the last added to
    what is there; to d_state go the sums that make those of the state. `result` is the mean and G, V, H of README.md.
    """
    parts, children, _ = activations.shape
    parents, near, pose, _ = votes.shape
    columns, m = dw.shape
    size = poses.shape[2]
    _even(coupling)
    for start in range(first, end, GROUP):
        count = min(GROUP, end - start)
        gather(poses, start, count, u, block)
        clear(du, 0, count * parts * size)
        for i in range(count):
            for begin in range(0, parts, near):  # as many images as have their votes nearby
                some, at = min(near, parts - begin), (i * parts + begin) * size * LANES
                for n in range(some):
                    _votes(u, at + n * size * LANES, weight, start + i, rows, n, votes)  # forward kept none
                    if routed:
                        _couple(votes, n, state, begin + n, agreed, coupling)
                    place = ((begin + n) * children + start + i) * LANES
                    da = _weigh(votes, n, coupling, result, begin + n, change)
                    store(out[1], place, da)
                    _differentiate(
                        votes,
                        n,
                        coupling,
                        load(activations, place),
                        change,
                        da,
                        state,
                        result,
                        begin + n,
                        routed,
                        agreed,
                        d_state,
                    )
                for j in range(parents):
                    to = (j * children + start + i) * columns * m  # of W_ij, and of its gradient
                    dv = j * near * pose * LANES
                    back(votes, dv, weight, to, some * rows, columns, m, du, at)  # du_i += dv_ij W_ij'
                    outer(u, at, votes[j], some, rows, columns, m, dw, 0)  # dW_ij += sum_b u_i' dv_ij
                    for c in range(columns):
                        for k in range(m):
                            out[2][j, start + i, c, k] += dw[c, k]
        scatter(du, start, count, out[0], block)


@subroutine
def _even(coupling):
    """Compute: couplings of 1."""
    for k in range(0, coupling.size, LANES):
        store(coupling, k, zeros(coupling) + coupling.dtype.type(1))


@subroutine
def _votes(u, at, weight, child, rows, n, votes):
    """Compute: votes [j, n, d, 16] of one child of 16 images for all parents."""
    parents, children, columns, m = weight.shape
    near = votes.shape[1]
    for j in range(parents):
        to, into = (j * children + child) * columns * m, (j * near + n) * rows * m * LANES
        vote(u, at, weight, to, rows, columns, m, votes, into, False)


@subroutine
def _couple(votes, n, state, part, agreed, coupling):
    """Compute: couplings [j, 16] of the votes [j, n, d, 16] by the state of block `part`."""
    mean, scale, prior = state
    parents, near, pose, _ = votes.shape
    for j in range(parents):
        v, place = (j * near + n) * pose * LANES, (part * parents + j) * LANES
        to, even = place * pose, pose // 2 * 2 * LANES
        if agreed is None:  # the log density: - sum_d (kappa (v - mu))^2
            a0 = a1 = zeros(votes)  # of even and odd elements, so that neither sum waits for the other
            for k in range(0, even, 2 * LANES):
                # scaled before it is squared: the square of a difference may exceed what float32 holds
                apart = load(scale, to + k) * (load(votes, v + k) - load(mean, to + k))
                a0 = a0 - apart * apart
                apart = load(scale, to + k + LANES) * (load(votes, v + k + LANES) - load(mean, to + k + LANES))
                a1 = a1 - apart * apart
            if even < pose * LANES:
                apart = load(scale, to + even) * (load(votes, v + even) - load(mean, to + even))
                a0 = a0 - apart * apart
            logit = a0 + a1
        else:
            logit = dot(votes, v, mean, to, pose)
        store(coupling, j * LANES, load(prior, place) + logit)
    softmax(coupling, 0, parents, zeros(votes) + votes.dtype.type(1))


@subroutine
def _gather(votes, coupling, a, part, sums):
    """Take one more vote into each mean and into the sum of squares about it: see `loops._gather`."""
    mean, square, weights = sums
    parents, _, pose, _ = votes.shape
    least = zeros(votes) + votes.dtype.type(LEAST)
    one = zeros(votes) + votes.dtype.type(1)
    for j in range(parents):
        place = (part * parents + j) * LANES
        w, before = load(coupling, j * LANES) * a, load(weights, place)
        after = before + w
        store(weights, place, after)
        step = w / select(after, least, after, one)
        both = step * before
        for k in range(0, pose * LANES, LANES):
            at = place * pose + k
            e = load(votes, j * pose * LANES + k) - load(mean, at)
            store(mean, at, load(mean, at) + step * e)
            store(square, at, load(square, at) + both * e * e)


@subroutine
def _weigh(votes, n, coupling, result, part, change):
    """Compute: change [j, 16], the gradients dw_ij = H + sum_d y (G + V y) of weights; returns da_i = sum_j c dw."""
    mean, of_mean, of_square, of_weight = result
    parents, near, pose, _ = votes.shape
    da = zeros(votes)
    for j in range(parents):
        v, place = (j * near + n) * pose * LANES, (part * parents + j) * LANES
        to, even = place * pose, pose // 2 * 2 * LANES
        a0, a1 = load(of_weight, place), zeros(votes)
        for k in range(0, even, 2 * LANES):
            y = load(votes, v + k) - load(mean, to + k)
            a0 = a0 + y * (load(of_mean, to + k) + load(of_square, to + k) * y)
            y = load(votes, v + k + LANES) - load(mean, to + k + LANES)
            a1 = a1 + y * (load(of_mean, to + k + LANES) + load(of_square, to + k + LANES) * y)
        if even < pose * LANES:
            y = load(votes, v + even) - load(mean, to + even)
            a0 = a0 + y * (load(of_mean, to + even) + load(of_square, to + even) * y)
        store(change, j * LANES, a0 + a1)
        da = da + (a0 + a1) * load(coupling, j * LANES)
    return da


@subroutine
def _differentiate(votes, n, coupling, a, change, da, state, result, part, routed, agreed, d_state):
    """Turn votes [j, n, d, 16] into their gradients dv_ij; what makes those of the state is added to d_state."""
    before, scale, _ = state
    mean, of_mean, of_square, _ = result
    first, second, d_prior = d_state
    parents, near, pose, _ = votes.shape
    for j in range(parents):
        place, w = (part * parents + j) * LANES, load(coupling, j * LANES) * a  # w_ij
        l = w * (load(change, j * LANES) - da)  # dl_ij = w_ij (dw_ij - da_i)
        if routed:
            store(d_prior, place, load(d_prior, place) + l)  # dq_j += dl_ij
        for k in range(0, pose * LANES, LANES):
            at, to = (j * near + n) * pose * LANES + k, place * pose + k
            v = load(votes, at)
            vy = load(of_square, to) * (v - load(mean, to))
            dv = w * (load(of_mean, to) + (vy + vy))
            if routed:
                if agreed is None:
                    s, e = load(scale, to), v - load(before, to)
                    le = l * (s * e)  # s e first: how many deviations, where a distance may be any number
                    store(first, to, load(first, to) + le)  # `sums.of_parents` makes dmu = 2 kappa times this sum
                    store(second, to, load(second, to) + le * e)  # and dkappa = -2 times this one
                    dv = dv - (le + le) * s
                else:
                    store(first, to, load(first, to) + l * v)  # dmu_j += dl_ij v_ij
                    dv = dv + l * load(before, to)
            store(votes, at, dv)
