"""The sums on CUDA, in Triton: a program takes a few images, or one child; no atomic sums. See README.md."""

# The body of a kernel is Triton's language, and a pointer no tensor.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchcaps.kernels.fm.moments_dense import backward as moments_backward
from torchcaps.kernels.fm.moments_dense import forward as moments
from torchcaps.kernels.tiles import (
    by_children,
    by_images,
    columns_first,
    geometry,
    give_back,
    inner,
    parents_at,
    parents_first,
    votes_of,
)

__all__ = ["backward", "forward", "moments", "moments_backward", "normal", "strides"]


def forward(poses: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, l2: bool, eps: float) -> tuple[Tensor, Tensor]:
    """See `op.fm_sums`; contiguous inputs of one type."""
    sizes = geometry(poses, weight)
    grid, share = by_images(sizes)
    out = poses.new_empty(2, grid[1], sizes["count"], sizes["J"], sizes["R"] * sizes["M"])
    inputs = poses, columns_first(weight), scale, shift, *strides(scale)
    _forward_kernel[grid](*inputs, out[0], out[1], share, l2, eps, **sizes)
    return out[0].sum(0), out[1].sum(0)


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
    sizes, packed = geometry(poses, weight), columns_first(weight)
    grid, share = by_children(sizes)
    d_poses, d_weight = torch.empty_like(poses), packed.new_empty(grid[1], *packed.shape)
    affine = poses.new_empty(2, grid[1], weight.shape[1], weight.shape[0], of_total.shape[2])
    inputs = poses, packed, scale, shift, *strides(scale), of_total, of_squares
    _child_kernel[grid](*inputs, d_poses, d_weight, affine[0], affine[1], share, l2, eps, **sizes)
    d_scale, d_shift = (x.sum(0).sum_to_size(scale.shape) for x in affine)
    return d_poses, parents_first(d_weight.sum(0)), d_scale.clone(), d_shift.clone()


def strides(affine: Tensor) -> tuple[int, int]:
    """Return how far [i | 1, j | 1, d] goes on for the next child and the next parent."""
    children, parents, _ = affine.shape
    return (affine.stride(0) if children > 1 else 0), (affine.stride(1) if parents > 1 else 0)


@triton.jit
def normal(
    votes, scale, shift, by_child, by_parent, child, eps, L2: tl.constexpr, J, R, M,
    JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr, j0,
):  # fmt: skip
    """Return x = scale v + shift [t, j, r, m], the scale, 1 / |x| [t, j, 1, 1], and whether |x|^2 is more than its
    floor.
    """
    j = j0 + tl.arange(0, JP)[None, :, None, None]
    r = tl.arange(0, RP)[None, None, :, None]
    m = tl.arange(0, MP)[None, None, None, :]
    at, there = child * by_child + j * by_parent + r * M + m, (j < J) & (r < R) & (m < M)
    a = tl.load(scale + at, mask=there, other=0.0)
    x = votes * a + tl.load(shift + at, mask=there, other=0.0)
    square = inner(x, x)[:, :, None, None]
    if L2:
        c, free = 1 / tl.sqrt(tl.maximum(square, eps)), square > eps
    else:
        c, free = tl.full(square.shape, 1, square.dtype), square < 0
    return x, a, c, free


@triton.jit
def _forward_kernel(
    poses, weight, scale, shift, by_child, by_parent, out_total, out_squares, share, L2: tl.constexpr, eps,
    count, children, J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    TILED: tl.constexpr, T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
):  # fmt: skip
    """Compute: out [runs, t, j, r, m] of the images, the run of children and the tile of parents of this program."""
    image, run = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T), tl.program_id(1)
    j0 = tl.program_id(2) * JP
    at, mask = parents_at(image, count, J, R, M, JP, RP, MP, j0)
    dtype = poses.dtype.element_ty
    total = tl.zeros((T, JP, RP, MP), dtype)
    squares = tl.zeros((T, JP, RP, MP), dtype)
    for child in range(run * share, tl.minimum(run * share + share, children)):
        v = votes_of(poses, weight, image, count, child, children, J, R, C, M, dtype, T, JP, RP, MP, j0)
        x, _, c, _ = normal(v, scale, shift, by_child, by_parent, child, eps, L2, J, R, M, JP, RP, MP, j0)
        total += c * x  # T_j and Q_j of README.md, of this run of children
        squares += c * x * c * x
    begin = run * count * J * R * M
    tl.store(out_total + begin + at, total, mask=mask)
    tl.store(out_squares + begin + at, squares, mask=mask)


@triton.jit
def _child_kernel(
    poses, weight, scale, shift, by_child, by_parent, of_total, of_squares, d_poses, d_weight, d_scale, d_shift, share,
    L2: tl.constexpr, eps,
    count, children, J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    TILED: tl.constexpr, T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
):  # fmt: skip
    """Compute: gradients of one child in `share` images, which no other program has: tile after tile."""
    child, run = tl.program_id(0), tl.program_id(1).to(tl.int64)
    last = tl.minimum(run * share + share, count)
    dtype = poses.dtype.element_ty
    begin = run * children * C * J * M
    for j0 in range(0, J, JP):
        of_scale = tl.zeros((1, JP, RP, MP), dtype)
        of_shift = tl.zeros((1, JP, RP, MP), dtype)
        for start in range(run * share, last, T):
            image = start + tl.arange(0, T)
            at, mask = parents_at(image, last, J, R, M, JP, RP, MP, j0)
            g = tl.load(of_total + at, mask=mask, other=0.0)
            h = 2 * tl.load(of_squares + at, mask=mask, other=0.0)  # the 2 of every term that has an h
            v = votes_of(poses, weight, image, last, child, children, J, R, C, M, dtype, T, JP, RP, MP, j0)
            x, a, c, free = normal(v, scale, shift, by_child, by_parent, child, eps, L2, J, R, M, JP, RP, MP, j0)
            d_x = c * (g + c * h * x)  # c g + 2 c^2 x h, as if c were a constant
            # and what follows c = 1 / |x|: dc c^3 x, where c dc = sum_d (c g + 2 c^2 x h) x is at hand
            bent = tl.where(free, inner(d_x, x)[:, :, None, None] * c * c, 0.0)
            d_x -= bent * x
            of_scale += tl.sum(d_x * v, 0)[None]
            of_shift += tl.sum(d_x, 0)[None]
            give_back(
                d_x * a, poses, weight, d_poses, d_weight, image, start - run * share, last, begin, child, children,
                J, R, C, M, JP, RP, MP, j0,
            )  # fmt: skip
        place = run * children + child + tl.arange(0, 1)
        at, there = parents_at(place, (run + 1) * children, J, R, M, JP, RP, MP, j0)
        tl.store(d_scale + at, of_scale, mask=there)
        tl.store(d_shift + at, of_shift, mask=there)
