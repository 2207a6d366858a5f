"""The sums on CPU: one child and one parent at a time, 16 images side by side. See README.md.

`_forward` is README.md's formulas for v, x, c, T and Q in that order, `_backward` those of its "Backward", of which
`_differentiate` has all that is not a product with a matrix. `torchcaps.kernels.simd` says how to read vectors,
`torchcaps.kernels.lanes` how arrays lie: a lane is an image. T, Q and their gradients are [blocks, j, d, 16].
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchcaps.kernels.fm.moments_cpu import backward as moments_backward
from torchcaps.kernels.fm.moments_cpu import forward as moments
from torchcaps.kernels.lanes import (
    BLOCK,
    arrays,
    back,
    blocks,
    clear,
    from_lanes,
    gather,
    outer,
    rooms,
    scatter,
    to_lanes,
    vote,
)
from torchcaps.kernels.simd import LANES, broadcast, compiled, load, root, select, store, subroutine, total, zeros
from torchcaps.kernels.threads import ranges, run

__all__ = ["backward", "forward", "moments", "moments_backward"]

GROUP = 8  # children that are gathered at once


def forward(poses: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, l2: bool, eps: float) -> tuple[Tensor, Tensor]:
    """See `op.fm_sums`; contiguous inputs of one type, scale and shift [i | 1, j | 1, d]."""
    images, children, size = poses.shape
    parents, pose = weight.shape[0], size // weight.shape[2] * weight.shape[3]
    spans = ranges(children)
    parts = poses.new_zeros(len(spans), 2, blocks(images), parents, pose, LANES)
    inputs, into = arrays(poses, weight, scale, shift), parts.numpy()
    shapes = (BLOCK, (GROUP, blocks(images), size, LANES), (pose, LANES), (pose, LANES))

    def work(part: int, first: int, end: int) -> None:
        _forward(*inputs, l2, eps, first, end, *into[part], *rooms(into, *shapes))

    run(work, spans)
    total, squares = (from_lanes(each.sum(0), images) for each in parts.unbind(1))  # apart: outputs share no memory
    return total, squares


def backward(
    of_total: Tensor,
    of_squares: Tensor,
    poses: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    l2: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return gradients for poses, weight, scale and shift."""
    children, parents, pose = weight.shape[1], weight.shape[0], of_total.shape[2]
    spans = ranges(children)
    outs = torch.empty_like(poses), torch.empty_like(weight)
    affine = [poses.new_empty(children, parents, pose) for _ in range(2)]  # of scale and shift
    inputs = arrays(to_lanes(of_total), to_lanes(of_squares), poses, weight, scale, shift, *outs, *affine)
    images = blocks(len(poses))
    lanes, of_votes = (GROUP, images, poses.shape[2], LANES), (images, pose, LANES)
    shapes = (BLOCK, lanes, lanes, of_votes, (pose, LANES), of_votes, (2, pose, LANES))

    def work(_: int, first: int, end: int) -> None:
        _backward(*inputs, l2, eps, first, end, *rooms(inputs[0], *shapes))

    run(work, spans)
    d_scale, d_shift = (x.sum_to_size(scale.shape) for x in affine)
    return *outs, d_scale, d_shift


@subroutine
def _place(affine, child, parent):
    """Return where the numbers of a child and a parent stand in `affine` [i | 1, j | 1, d]."""
    children, parents, pose = affine.shape
    return ((child if children > 1 else 0) * parents + (parent if parents > 1 else 0)) * pose


@subroutine
def _normal(votes, at, scale, shift, place, pose, l2, eps, out):
    """Return out [d, 16] = scale v + shift; the coupling, 1 / length, and whether the length is more than its floor."""
    square = zeros(out)
    for d in range(pose):  # x = scale v + shift, of which scale and shift are the same for all images
        x = load(votes, at + d * LANES) * broadcast(scale, place + d) + broadcast(shift, place + d)
        store(out, d * LANES, x)
        square = square + x * x
    one = zeros(out) + out.dtype.type(1)
    if not l2:
        return one, zeros(out)
    floor = zeros(out) + out.dtype.type(eps)
    # c = 1 / sqrt(max(|x|^2, eps)); and 1 or 0 for whether c follows x, or stands at its floor
    return one / root(select(floor, square, floor, square)), select(square, floor, one, zeros(out))


@compiled
def _forward(poses, weight, scale, shift, l2, eps, first, end, out_total, out_squares, block, u, v, normal):
    """Compute: out [blocks, j, d, 16] += sums over the children from `first` to `end`."""
    parents, children, columns, m = weight.shape
    parts, _, pose, _ = out_total.shape
    size = poses.shape[2]
    rows = size // columns
    for start in range(first, end, GROUP):
        count = min(GROUP, end - start)
        gather(poses, start, count, u, block)
        for n in range(parts):
            for i in range(count):
                at = (i * parts + n) * size * LANES  # of u_i of these 16 images
                for j in range(parents):
                    child = start + i
                    # v_ij = u_i W_ij, and x of it; parents do not compete, so that no other vote is waited for
                    vote(u, at, weight, (j * children + child) * columns * m, rows, columns, m, v, 0, False)
                    c, _ = _normal(v, 0, scale, shift, _place(scale, child, j), pose, l2, eps, normal)
                    to = (n * parents + j) * pose * LANES
                    for k in range(0, pose * LANES, LANES):  # T_j += c x, Q_j += (c x)^2
                        x = load(normal, k) * c
                        store(out_total, to + k, load(out_total, to + k) + x)
                        store(out_squares, to + k, load(out_squares, to + k) + x * x)


@compiled
def _backward(
    of_total,
    of_squares,
    poses,
    weight,
    scale,
    shift,
    out_poses,
    out_weight,
    out_scale,
    out_shift,
    l2,
    eps,
    first,
    end,
    block,
    u,
    du,
    v,
    normal,
    dv,
    sums,
):
    """Compute: gradients of the children from `first` to `end`."""
    parents, children, columns, m = weight.shape
    parts, _, pose, _ = of_total.shape
    size = poses.shape[2]
    rows = size // columns
    # dv [blocks, d, 16] is of one child and one parent, all images: dW_ij is a sum over these; sums [2, d, 16] of what
    # images give the gradients of scale and shift, each lane for itself
    for start in range(first, end, GROUP):
        count = min(GROUP, end - start)
        gather(poses, start, count, u, block)
        clear(du, 0, count * parts * size)
        for i in range(count):
            at, child = i * parts * size * LANES, start + i
            for j in range(parents):
                to, place = (j * children + child) * columns * m, _place(scale, child, j)
                clear(sums, 0, 2 * pose)
                vote(u, at, weight, to, parts * rows, columns, m, v, 0, False)  # of all images, since none was kept
                for n in range(parts):
                    c, free = _normal(v, n * pose * LANES, scale, shift, place, pose, l2, eps, normal)
                    of = (n * parents + j) * pose * LANES  # of g and h of these images' parent j
                    _differentiate(v, normal, c, free, of_total, of_squares, of, scale, place, dv, n, sums)
                back(dv, 0, weight, to, parts * rows, columns, m, du, at)  # du_i += dv_ij W_ij'
                outer(u, at, dv, parts, rows, columns, m, out_weight, to)  # dW_ij = sum_b u_i' dv_ij
                for d in range(pose):  # summed over images: across blocks so far, across lanes here
                    out_scale[child, j, d] = total(load(sums, d * LANES))
                    out_shift[child, j, d] = total(load(sums, (pose + d) * LANES))
        scatter(du, start, count, out_poses, block)


@subroutine
def _differentiate(v, normal, c, free, of_total, of_squares, of, scale, place, out, n, sums):
    """Compute: out [n, d, 16] = gradient of v [n, d, 16]; what it adds to those of scale and shift goes to sums [2,
    d, 16].

    With x = scale v + shift: c of_total + 2 c^2 x of_squares, less c^3 x times the gradient of c = 1 / |x|.
    """
    pose = out.shape[1]
    change = zeros(out)
    for d in range(pose):  # dc = sum_d g x + 2 c x^2 h, with x taken out of the bracket
        x, k = load(normal, d * LANES), of + d * LANES
        square = load(of_squares, k) * x
        change = change + x * (load(of_total, k) + c * (square + square))
    # c = |x|^-1 has the gradient -c^3 x; at the floor it is a constant, and so without l2
    change = select(free, zeros(v), change * c * c * c, zeros(v))
    for d in range(pose):
        x, k = load(normal, d * LANES), of + d * LANES
        square = load(of_squares, k) * x
        step = c * (load(of_total, k) + c * (square + square)) - change * x  # dx
        store(out, (n * pose + d) * LANES, step * broadcast(scale, place + d))  # dv = scale dx
        store(sums, d * LANES, load(sums, d * LANES) + step * load(v, (n * pose + d) * LANES))  # dscale += v dx
        store(sums, (pose + d) * LANES, load(sums, (pose + d) * LANES) + step)  # dshift += dx
