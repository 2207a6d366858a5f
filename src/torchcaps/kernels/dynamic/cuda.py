"""The step on CUDA, in Triton: a program takes a few images, or one child; no atomic sums. See README.md."""

# The body of a kernel is Triton's language, and a pointer no tensor.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchcaps.kernels.tiles import (
    by_children,
    by_images,
    column_at,
    columns_first,
    geometry,
    give_back,
    inner,
    parents_at,
    parents_first,
    row_at,
    votes_of,
)


def forward(
    poses: Tensor, weight: Tensor, state: Tensor | None, initial: Tensor | None, xnor: bool, binary: bool
) -> Tensor:
    """See `op.dynamic_step`; contiguous inputs of one type, float32 or float64."""
    if state is None:
        rows = poses.unflatten(-1, (-1, weight.shape[2]))
        return torch.einsum("birc,jicm->bjrm", rows, weight).flatten(2) / weight.shape[0]
    sizes = geometry(poses, weight)
    grid, share = by_images(sizes)
    out = state.new_empty(grid[1], *state.shape)
    _forward_kernel[grid](
        poses, columns_first(weight), state, *_start(initial, state), out, share, xnor, binary, **sizes
    )
    return out.sum(0)


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
        rows, given = poses.unflatten(-1, (-1, weight.shape[2])), gradient.unflatten(-1, (-1, weight.shape[3]))
        d_poses = torch.einsum("bjrm,jicm->birc", given, weight).flatten(2) / weight.shape[0]
        return d_poses, torch.einsum("bjrm,birc->jicm", given, rows) / weight.shape[0], None, None
    sizes, packed, start = geometry(poses, weight), columns_first(weight), _start(initial, state)
    inputs = poses, packed, state, *start, gradient
    grid, share = by_images(sizes)
    d_state = state.new_zeros(grid[1], *state.shape)
    if not last:
        _state_kernel[grid](*inputs, d_state, share, xnor, binary, **sizes)
    grid, share = by_children(sizes)
    d_poses, d_weight = torch.empty_like(poses), packed.new_empty(grid[1], *packed.shape)
    d_initial = state.new_empty(grid[1], weight.shape[1], weight.shape[0])
    _child_kernel[grid](*inputs, d_poses, d_weight, d_initial, share, xnor, binary, last, **sizes)
    return d_poses, parents_first(d_weight.sum(0)), d_state.sum(0), d_initial.sum(0)


def _start(initial: Tensor | None, state: Tensor) -> tuple[Tensor, bool]:
    """Return initial logits and whether there are any."""
    return (state, False) if initial is None else (initial, True)


@triton.jit
def _cancelled(
    votes, poses, weight, image, last, child, children, J, R, C, M, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr
):
    """Return 0 for what is less than half a term of its sum, where terms differ in sign alone: rounding left it."""
    at, there = column_at(image, last, child, children, 0, R, C, RP)
    u = tl.abs(tl.load(poses + at, mask=there, other=0.0))
    at, there = row_at(child, 0, J, C, M, JP, MP)
    w = tl.abs(tl.load(weight + at, mask=there, other=0.0))
    return tl.where(tl.abs(votes) < 0.5 * u[:, None, :, None] * w[None, :, None, :], 0.0, votes)


@triton.jit
def _scale(votes, R, M):
    """Return mean size of a vote's elements, [t, j]."""
    return tl.sum(tl.sum(tl.abs(votes), 3), 2) / (R * M)


@triton.jit
def _couple(
    votes, state, initial, child, J, R, M, JP: tl.constexpr, STARTS: tl.constexpr, XNOR: tl.constexpr
):  # fmt: skip
    """Return softmax over parents of one child's logits, [t, j]."""
    j = tl.arange(0, JP)
    if XNOR:
        logits = tl.sum(tl.sum(tl.where(votes > 0, state, -state), 3), 2) * _scale(votes, R, M)
    else:
        logits = inner(votes, state)
    if STARTS:
        logits += tl.load(initial + child * J + j, mask=j < J, other=0.0)[None, :]
    logits = tl.where((j < J)[None, :], logits, float("-inf"))
    e = tl.exp(logits - tl.max(logits, 1)[:, None])
    return e / tl.sum(e, 1)[:, None]


@triton.jit
def _change(votes, coupling, gradient):
    """Return gradient of the logits, [t, j]."""
    of_coupling = inner(votes, gradient)
    return coupling * (of_coupling - tl.sum(coupling * of_coupling, 1)[:, None])


@triton.jit
def _forward_kernel(
    poses, weight, state, initial, STARTS: tl.constexpr, out, share, XNOR: tl.constexpr, BINARY: tl.constexpr,
    count, children,
    J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
):  # fmt: skip
    """Compute: out [runs, t, j, r, m] of the images of this program and its run of children."""
    image, run = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T), tl.program_id(1)
    at, mask = parents_at(image, count, J, R, M, JP, RP, MP)
    q = tl.load(state + at, mask=mask, other=0.0)
    total = tl.zeros((T, JP, RP, MP), q.dtype)
    for child in range(run * share, tl.minimum(run * share + share, children)):
        v = votes_of(poses, weight, image, count, child, children, J, R, C, M, q.dtype, T, JP, RP, MP)
        if BINARY:
            v = _cancelled(v, poses, weight, image, count, child, children, J, R, C, M, JP, RP, MP)
        total += _couple(v, q, initial, child, J, R, M, JP, STARTS, XNOR)[:, :, None, None] * v
    tl.store(out + run * count * J * R * M + at, total, mask=mask)


@triton.jit
def _state_kernel(
    poses, weight, state, initial, STARTS: tl.constexpr, gradient, out, share, XNOR: tl.constexpr, BINARY: tl.constexpr,
    count, children, J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
):  # fmt: skip
    """Compute: gradient of the state, like `_forward_kernel`'s sums."""
    image, run = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T), tl.program_id(1)
    at, mask = parents_at(image, count, J, R, M, JP, RP, MP)
    q = tl.load(state + at, mask=mask, other=0.0)
    g = tl.load(gradient + at, mask=mask, other=0.0)
    total = tl.zeros((T, JP, RP, MP), q.dtype)
    for child in range(run * share, tl.minimum(run * share + share, children)):
        v = votes_of(poses, weight, image, count, child, children, J, R, C, M, q.dtype, T, JP, RP, MP)
        if BINARY:
            v = _cancelled(v, poses, weight, image, count, child, children, J, R, C, M, JP, RP, MP)
        change = _change(v, _couple(v, q, initial, child, J, R, M, JP, STARTS, XNOR), g)
        if XNOR:
            size = (change * _scale(v, R, M))[:, :, None, None]
            total += tl.where(v > 0, size, -size)
        else:
            total += change[:, :, None, None] * v
    tl.store(out + run * count * J * R * M + at, total, mask=mask)


@triton.jit
def _child_kernel(
    poses, weight, state, initial, STARTS: tl.constexpr, gradient, d_poses, d_weight, d_initial, share,
    XNOR: tl.constexpr, BINARY: tl.constexpr, LAST: tl.constexpr,
    count, children, J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
):  # fmt: skip
    """Compute: gradients of one child in `share` images, which no other program has."""
    child, run = tl.program_id(0), tl.program_id(1).to(tl.int64)
    j = tl.arange(0, JP)
    last = tl.minimum(run * share + share, count)
    of_initial = tl.zeros((JP,), poses.dtype.element_ty)
    for start in range(run * share, last, T):
        image = start + tl.arange(0, T)
        at, mask = parents_at(image, last, J, R, M, JP, RP, MP)
        q = tl.load(state + at, mask=mask, other=0.0)
        g = tl.load(gradient + at, mask=mask, other=0.0)
        v = votes_of(poses, weight, image, last, child, children, J, R, C, M, q.dtype, T, JP, RP, MP)
        if BINARY:
            v = _cancelled(v, poses, weight, image, last, child, children, J, R, C, M, JP, RP, MP)
        coupling = _couple(v, q, initial, child, J, R, M, JP, STARTS, XNOR)
        change = _change(v, coupling, g)
        of_initial += tl.sum(tl.where((image < last)[:, None], change, 0.0), 0)
        if LAST:
            follow = tl.zeros_like(v)
        elif XNOR:  # straight through the sign, where |v| <= 1
            follow = tl.where(tl.abs(v) <= 1, q * (change * _scale(v, R, M))[:, :, None, None], 0.0)
        else:
            follow = change[:, :, None, None] * q
        d_votes = coupling[:, :, None, None] * g + follow
        begin, done = run * children * C * J * M, start - run * share
        give_back(
            d_votes, poses, weight, d_poses, d_weight, image, done, last, begin, child, children,
            J, R, C, M, JP, RP, MP,
        )  # fmt: skip
    tl.store(d_initial + (run * children + child) * J + j, of_initial, mask=j < J)
