"""The step on CPU: one child at a time, 16 images side by side, votes in the nearest cache. See README.md.

`_forward` is README.md's formulas for v, l, c and s in that order, `_backward` those of its "Backward".
`torchcaps.kernels.simd` says how to read vectors; a lane is an image, so that softmax over j and sums over d are plain
loops, and nothing is summed across lanes but the gradients that sum over images. What belongs to the parents (state,
gradient, results) is [blocks, j, d, 16], a block being 16 images. A place in an array is a number that counts through
all its dimensions: parent j of block n begins at (n J + j) d 16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchcaps.kernels.dynamic import uniform
from torchcaps.kernels.lanes import (
    BLOCK,
    arrays,
    back,
    blocks,
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
    votes_of,
)
from torchcaps.kernels.simd import (
    LANES,
    broadcast,
    compiled,
    inlined,
    load,
    magnitude,
    select,
    store,
    subroutine,
    zeros,
)
from torchcaps.kernels.threads import ranges, run

GROUP = 8  # children that are gathered at once
# Loops take `xnor` and `binary` as True or None: what stands behind None is not compiled.


def forward(
    poses: Tensor, weight: Tensor, state: Tensor | None, initial: Tensor | None, xnor: bool, binary: bool
) -> Tensor:
    """See `op.dynamic_step`; contiguous inputs of one type, float32 or float64."""
    if state is None:
        return uniform.forward(poses, weight)
    images, parents, pose = state.shape
    spans = ranges(weight.shape[1])
    parts = state.new_zeros(len(spans), blocks(images), parents, pose, LANES)
    inputs, into = arrays(poses, weight, to_lanes(state), _start(initial, weight)), parts.numpy()
    # a thread has a run of children and sums of its own, which are added here: s_j is a sum over all of them
    lanes, flags = (GROUP, blocks(images), poses.shape[2], LANES), (xnor or None, binary or None)

    def work(part: int, first: int, end: int) -> None:
        space = rooms(into, BLOCK, lanes, (parents, pose, LANES), (parents, LANES))
        _forward(*inputs, *flags, first, end, into[part], *space)

    run(work, spans)
    return from_lanes(parts.sum(0), images)


def backward(
    gradient: Tensor,
    poses: Tensor,
    weight: Tensor,
    state: Tensor | None,
    initial: Tensor | None,
    xnor: bool,
    binary: bool,
    last: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """See `op.dynamic_step_backward`; the gradient for `initial` is given where that is None, too."""
    if state is None:
        return *uniform.backward(gradient, poses, weight), None, None
    images, parents, pose = state.shape
    spans = ranges(weight.shape[1])
    parts = state.new_zeros(len(spans), blocks(images), parents, pose, LANES)
    outs = torch.empty_like(poses), torch.empty_like(weight), weight.new_empty(weight.shape[1], parents)
    inputs = arrays(poses, weight, to_lanes(state), _start(initial, weight), to_lanes(gradient))
    results, into = arrays(*outs), parts.numpy()
    # what belongs to a child is written by the thread that has it; only the state's gradient is a sum over threads
    parts_of, flags = blocks(images), (xnor or None, binary or None)
    lanes, logits = (GROUP, parts_of, poses.shape[2], LANES), (GROUP, parts_of, parents, LANES)
    shapes = (BLOCK, lanes, lanes, (parents, pose, LANES), logits, logits, (parts_of, pose, LANES))

    def work(part: int, first: int, end: int) -> None:
        _backward(*inputs, *flags, last, first, end, *results, into[part], *rooms(into, *shapes))

    run(work, spans)
    return outs[0], outs[1], from_lanes(parts.sum(0), images), outs[2]


def _start(initial: Tensor | None, weight: Tensor) -> Tensor:
    return weight.new_zeros(weight.shape[1], weight.shape[0]) if initial is None else initial


@subroutine
def _cancel(u, at, weight, to, rows, columns, m, votes, into):
    """Make 0 of what is less than half a term of its sum, where terms differ in sign alone: rounding left it."""
    half = votes.dtype.type(0.5)
    for r in range(rows):
        # all elements of a row of u are of one size, as those of a column of W are: the first of each has it
        size = magnitude(load(u, at + r * columns * LANES)) * half
        for s in range(m):
            k = into + (r * m + s) * LANES  # of v[r, s], a sum of terms +-|u| |W|: 0, or at least one of them
            x = load(votes, k)
            least = size * magnitude(broadcast(weight, to + s))
            store(votes, k, select(least, magnitude(x), zeros(votes), x))


@inlined
def agreement(votes, at, state, to, pose, xnor):
    """Return logits of 16 images with one parent."""
    if xnor is None:
        return dot(votes, at, state, to, pose)  # sum_d v_d S_d
    logit = zeros(votes)
    for k in range(0, pose * LANES, LANES):  # sum_d sign(v_d) S_d: S where v > 0, and -S elsewhere, at 0 too
        x = load(state, to + k)
        logit = logit + select(load(votes, at + k), zeros(votes), x, zeros(votes) - x)
    return logit * _scale(votes, at, pose)  # times mean|v|


@inlined
def _scale(votes, at, pose):
    """Return mean size of a vote's elements, of which binarizing leaves one number."""
    size = zeros(votes)
    for k in range(0, pose * LANES, LANES):
        size = size + magnitude(load(votes, at + k))
    return size / votes.dtype.type(pose)


@subroutine
def _couple(u, at, weight, child, state, to, initial, xnor, binary, rows, votes, coupling):
    """Compute: votes [j, d, 16] of one child of 16 images, and their coupling [j, 16]."""
    votes_of(u, at, weight, child, rows, votes, 0, False)  # v_ij = u_i W_ij for all j, over those of the last child
    if binary is not None:
        _cancel_all(u, at, weight, child, rows, votes)
    _agreements(votes, state, to, initial, child, xnor, coupling)  # l_ij, where c_ij will stand
    softmax(coupling, 0, coupling.shape[0], zeros(votes) + votes.dtype.type(1))  # c_ij, each image's summing to 1


@subroutine
def _cancel_all(u, at, weight, child, rows, votes):
    """Do `_cancel` for the votes of one child for every parent."""
    parents, children, columns, m = weight.shape
    for j in range(parents):
        to = (j * children + child) * columns * m
        _cancel(u, at, weight, to, rows, columns, m, votes, j * rows * m * LANES)


@subroutine
def _agreements(votes, state, to, initial, child, xnor, coupling):
    """Compute: logits [j, 16] of 16 images with all parents."""
    parents, pose, _ = votes.shape
    for j in range(parents):
        k = j * pose * LANES
        logit = agreement(votes, k, state, to + k, pose, xnor)
        store(coupling, j * LANES, logit + initial[child, j])  # one number for all 16 images


@subroutine
def share(votes, coupling, out, to):
    """Compute: out [j, d, 16] += coupling times votes."""
    parents, pose, _ = votes.shape
    for j in range(parents):
        c = load(coupling, j * LANES)  # of 16 images; it stays in a register for all elements of the vote
        for k in range(j * pose * LANES, (j + 1) * pose * LANES, LANES):
            store(out, to + k, load(out, to + k) + c * load(votes, k))


@compiled
def _forward(poses, weight, state, initial, xnor, binary, first, end, out, block, u, votes, coupling):
    """Compute: out [blocks, j, d, 16] += sum over the children from `first` to `end`."""
    parts, parents, pose, _ = state.shape
    size = poses.shape[2]
    rows = size // weight.shape[2]
    # votes [j, d, 16] are of one child and 16 images: written and read before the next one
    for start in range(first, end, GROUP):
        count = min(GROUP, end - start)
        gather(poses, start, count, u, block)  # several children at once: transposing takes 16 numbers of an image
        for n in range(parts):  # blocks outside: the sums of 16 images stay near while children pass
            to = n * parents * pose * LANES  # of these images' parents, in the state and in `out`
            for i in range(count):
                at = (i * parts + n) * size * LANES  # of u_i of these images
                _couple(u, at, weight, start + i, state, to, initial, xnor, binary, rows, votes, coupling)
                share(votes, coupling, out, to)  # s_j += c_ij v_ij


@compiled
def _backward(
    poses,
    weight,
    state,
    initial,
    gradient,
    xnor,
    binary,
    last,
    first,
    end,
    out_poses,
    out_weight,
    out_initial,
    out_state,
    block,
    u,
    du,
    votes,
    coupling,
    logits,
    dv,
):
    """Compute: gradients of the children from `first` to `end`; what they add to that of the state goes to
    out_state.
    """
    parts, parents, pose, _ = state.shape
    size = poses.shape[2]
    rows = size // weight.shape[2]
    # coupling and logits, their gradients, [GROUP, blocks, j, 16] are of a group of children and all images, from the
    # first half of the work for the second; dv [blocks, d, 16] of one child and one parent, all images: d W_ij is a sum
    # over these
    for start in range(first, end, GROUP):
        count = min(GROUP, end - start)
        gather(poses, start, count, u, block)
        clear(du, 0, count * parts * size)
        for n in range(parts):  # first half: 16 images, and all parents of a child, since softmax needs them
            to = n * parents * pose * LANES
            for i in range(count):
                at = (i * parts + n) * size * LANES
                here = coupling[i, n]
                _couple(u, at, weight, start + i, state, to, initial, xnor, binary, rows, votes, here)  # v, c anew
                _differentiate(votes, here, gradient, state, to, pose, xnor, last, logits[i, n], out_state)
        for i in range(count):  # second half: all images of a child, since the gradient of W_ij sums over them
            at = i * parts * size * LANES
            _initial(logits[i], out_initial, start + i)
            if last:  # v . S is a constant: behind the logits only `initial` has a gradient
                clear(logits, i * parts * parents * LANES, parts * parents)
            _children(
                u,
                at,
                weight,
                start + i,
                state,
                gradient,
                xnor,
                binary,
                coupling[i],
                logits[i],
                votes,
                dv,
                du,
                out_weight,
            )
        scatter(du, start, count, out_poses, block)


@subroutine
def _differentiate(votes, coupling, gradient, state, to, pose, xnor, last, out, out_state):
    """Compute: gradients of the logits [j, 16] of one child and 16 images, and what they add to that of the state."""
    parents = coupling.shape[0]
    mean = zeros(votes)  # sum_k c_ik dc_ik, of each image
    for j in range(parents):
        k = j * pose * LANES
        change = dot(votes, k, gradient, to + k, pose)  # dc_ij = v_ij . g_j
        mean = mean + change * load(coupling, j * LANES)
        store(out, j * LANES, change)
    for j in range(parents):
        change = load(coupling, j * LANES) * (load(out, j * LANES) - mean)  # dl_ij = c_ij (dc_ij - mean): softmax'
        store(out, j * LANES, change)
        if last:
            continue
        # l = v . S, so that dS += dl v; with xnor l = mean|v| sign(v) . S, so that dS += dl mean|v| sign(v)
        if xnor is not None:
            change = change * _scale(votes, j * pose * LANES, pose)
        for k in range(j * pose * LANES, (j + 1) * pose * LANES, LANES):
            x = load(votes, k)
            step = change * x
            if xnor is not None:
                step = select(x, zeros(votes), change, zeros(votes) - change)
            store(out_state, to + k, load(out_state, to + k) + step)


@subroutine
def _children(u, at, weight, child, state, gradient, xnor, binary, coupling, logits, votes, dv, du, out_weight):
    """Compute: gradients of one child's poses and matrices, of those of its votes: c gradient + logit state."""
    parents, children, columns, m = weight.shape
    parts, pose, _ = dv.shape
    rows = pose // m
    for j in range(parents):
        to = (j * children + child) * columns * m  # of W_ij, and of its gradient
        for n in range(parts):
            # where parent j of these 16 images begins, in state and gradient; where u_i of these images does
            base, here = (n * parents + j) * pose * LANES, at + n * rows * columns * LANES
            c = load(coupling, (n * parents + j) * LANES)
            change = load(logits, (n * parents + j) * LANES)
            if xnor is not None:  # the agreement's gradient takes |v|; that of a product takes no vote
                vote(u, here, weight, to, rows, columns, m, votes, 0, False)
                if binary is not None:
                    _cancel(u, here, weight, to, rows, columns, m, votes, 0)
                change = change * _scale(votes, 0, pose)  # mean|v|, a constant to the gradient
            for k in range(0, pose * LANES, LANES):  # dv_ij = c_ij g_j + dl_ij S_j
                follow = change * load(state, base + k)
                if xnor is not None:  # straight through the sign, where |v| <= 1
                    one = zeros(votes) + votes.dtype.type(1)
                    follow = select(magnitude(load(votes, k)), one, zeros(votes), follow)
                store(dv, n * pose * LANES + k, c * load(gradient, base + k) + follow)
        back(dv, 0, weight, to, parts * rows, columns, m, du, at)  # du_i += dv_ij W_ij'
        outer(u, at, dv, parts, rows, columns, m, out_weight, to)  # dW_ij = sum_b u_i' dv_ij, whole: it is set


@subroutine
def _initial(logits, out, child):
    """Sum over images [blocks, j, 16] -> out [i, j] at `child`."""
    parts, parents, lanes = logits.shape
    for j in range(parents):  # dl0_ij = sum_b dl_ij; images beyond the last have gradient 0, and so dl 0
        change = logits.dtype.type(0)
        for n in range(parts):
            for lane in range(lanes):
                change += logits[n, j, lane]
        out[child, j] = change
