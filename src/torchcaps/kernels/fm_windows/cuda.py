"""The sums on CUDA, in Triton: a program has a few positions and a run of their children, or children of one type.

There are no atomic sums. Tensors in a program are as in `torchcaps.kernels.window_tiles`, and `torchcaps.kernels.tiles`
says how to read a kernel. See README.md.
"""

# The body of a kernel is Triton's language, and a pointer no tensor.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchcaps.kernels.fm.cuda import normal, strides
from torchcaps.kernels.tiles import inner, parents_at
from torchcaps.kernels.window_tiles import (
    by_positions,
    by_types,
    child_at,
    children_of,
    geometry,
    give_back,
    offsets_first,
    parents_first,
    summed,
    window_votes,
)

__all__ = ["backward", "forward"]


def forward(
    poses: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    rows: int,
    stride: int,
    padding: int,
    l2: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """See `op.fm_window_sums`; contiguous inputs of one type."""
    sizes = geometry(poses, weight, rows, stride, padding)
    grid, share = by_positions(sizes)
    shape = grid[1], len(poses), sizes["places"], sizes["J"], sizes["R"] * sizes["M"]
    total, squares = poses.new_empty(shape), poses.new_empty(shape)
    inputs = poses, offsets_first(weight), scale, shift, *strides(scale)
    _forward_kernel[grid](*inputs, total, squares, share, l2, eps, **sizes)
    return summed(total), summed(squares)


def backward(
    of_total: Tensor,
    of_squares: Tensor,
    poses: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    rows: int,
    stride: int,
    padding: int,
    l2: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return gradients for poses, weight, scale and shift."""
    sizes, packed = geometry(poses, weight, rows, stride, padding), offsets_first(weight)
    grid, share = by_types(sizes, len(poses))
    d_poses, d_weight = torch.zeros_like(poses), packed.new_zeros(grid[1], *packed.shape)
    pairs = grid[1], children_of(sizes), sizes["J"], sizes["R"] * sizes["M"]
    affine = poses.new_empty(pairs), poses.new_empty(pairs)
    inputs = poses, packed, scale, shift, *strides(scale), of_total, of_squares
    _child_kernel[grid](*inputs, d_poses, d_weight, *affine, share, l2, eps, **sizes)
    d_scale, d_shift = (x.sum(0).sum_to_size(scale.shape) for x in affine)
    return d_poses, parents_first(d_weight.sum(0)), d_scale, d_shift


@triton.jit
def _forward_kernel(
    poses, weight, scale, shift, by_child, by_parent, out_total, out_squares, share, L2: tl.constexpr, eps,
    count, height, width, across, places, stride, padding, types,
    KH: tl.constexpr, KW: tl.constexpr, J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    TILED: tl.constexpr, T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
):  # fmt: skip
    """Compute: out [runs, t, j, r, m] of the positions, the run of children and the tile of parents of this program."""
    position, run = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T), tl.program_id(1)
    j0, children = tl.program_id(2) * JP, KH * KW * types
    at, mask = parents_at(position, count, J, R, M, JP, RP, MP, j0)
    total = tl.zeros((T, JP, RP, MP), poses.dtype.element_ty)
    squares = tl.zeros((T, JP, RP, MP), poses.dtype.element_ty)
    for index in range(run * share, tl.minimum(run * share + share, children)):
        child, present = child_at(
            position, index // types, index % types, count, height, width, across, places, stride, padding, types,
            KW, R * C,
        )  # fmt: skip
        v = window_votes(poses, child, present, weight, index * C * J * M, total, J, R, C, M, T, JP, RP, MP, j0)
        x, _, c, _ = normal(v, scale, shift, by_child, by_parent, index, eps, L2, J, R, M, JP, RP, MP, j0)
        c = tl.where(present[:, None, None, None], c, 0.0)  # a child outside the image adds nothing
        total += c * x  # T_j and Q_j of README.md, of this run of children
        squares += c * x * c * x
    begin = run.to(tl.int64) * count * J * R * M
    tl.store(out_total + begin + at, total, mask=mask)
    tl.store(out_squares + begin + at, squares, mask=mask)


@triton.jit
def _child_kernel(
    poses, weight, scale, shift, by_child, by_parent, of_total, of_squares, d_poses, d_weight, d_scale, d_shift, share,
    L2: tl.constexpr, eps,
    count, height, width, across, places, stride, padding, types,
    KH: tl.constexpr, KW: tl.constexpr, J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    TILED: tl.constexpr, T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
):  # fmt: skip
    """Compute: gradients of the children of one type in `share` positions, which no other program has, and their part
    of those of weights, scale and shift.

    Windows share a child only at different offsets, which come one after another, as tiles of parents do.
    """
    n, part = tl.program_id(0), tl.program_id(1).to(tl.int64)
    first = part * share
    last = tl.minimum(first + share, count)
    for k in range(KH * KW):
        index = k * types + n
        w = index * C * J * M
        own = part * KH * KW * types * C * J * M + w
        for j0 in range(0, J, JP):
            of_scale = tl.zeros((1, JP, RP, MP), poses.dtype.element_ty)
            of_shift = tl.zeros((1, JP, RP, MP), poses.dtype.element_ty)
            for start in range(first, last, T):
                position = start + tl.arange(0, T)
                child, present = child_at(
                    position, k, n, last, height, width, across, places, stride, padding, types, KW, R * C
                )
                at, mask = parents_at(position, last, J, R, M, JP, RP, MP, j0)
                g = tl.load(of_total + at, mask=mask, other=0.0)
                h = 2 * tl.load(of_squares + at, mask=mask, other=0.0)  # the 2 of every term that has an h
                v = window_votes(poses, child, present, weight, w, g, J, R, C, M, T, JP, RP, MP, j0)
                x, a, c, free = normal(v, scale, shift, by_child, by_parent, index, eps, L2, J, R, M, JP, RP, MP, j0)
                c = tl.where(present[:, None, None, None], c, 0.0)
                d_x = c * (g + c * h * x)  # c g + 2 c^2 x h, as if c were a constant
                # and what follows c = 1 / |x|: dc c^3 x, where c dc = sum_d (c g + 2 c^2 x h) x is at hand
                d_x -= tl.where(free, inner(d_x, x)[:, :, None, None] * c * c, 0.0) * x
                of_scale += tl.sum(d_x * v, 0)[None]
                of_shift += tl.sum(d_x, 0)[None]
                give_back(d_x * a, poses, weight, d_poses, d_weight, child, present, w, own, J, R, C, M, JP, RP, MP, j0)
            pair = part * KH * KW * types + index + tl.arange(0, 1)
            at, there = parents_at(pair, pair + 1, J, R, M, JP, RP, MP, j0)
            tl.store(d_scale + at, of_scale, mask=there)
            tl.store(d_shift + at, of_shift, mask=there)
