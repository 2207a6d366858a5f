"""The step on CUDA, in Triton: a program takes a few images, or one child; no atomic sums. See README.md.

`torchcaps.kernels.tiles` says how to read a kernel. In each, q is S of README.md, g the gradient of s, v a child's
votes, `coupling` c and `change` the gradient of the logits. Sums over children are of a program's run of them, and
torch adds the runs.
"""

# The body of a kernel is Triton's language, and a pointer no tensor.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchcaps.kernels import tiles as tiling
from torchcaps.kernels.dynamic import uniform
from torchcaps.kernels.tiles import (
    agreement,
    by_children,
    by_images,
    change_of_logits,
    column_at,
    columns_first,
    geometry,
    give_back,
    given_to_parents,
    given_to_votes,
    inner,
    parents_at,
    parents_first,
    row_at,
    softmax,
    votes_of,
    without_rounding,
)
from torchcaps.kernels.window_tiles import runs_of


def forward(
    poses: Tensor, weight: Tensor, state: Tensor | None, initial: Tensor | None, xnor: bool, binary: bool
) -> Tensor:
    """See `op.dynamic_step`; contiguous inputs of one type, float32 or float64."""
    if state is None:
        return uniform.forward(poses, weight)
    sizes = geometry(poses, weight)
    inputs = poses, columns_first(weight), state, *_start(initial, state)
    seen = _claims(inputs, state, sizes, xnor, binary, back=False)
    grid, share = by_images(sizes)
    out = state.new_empty(grid[1], *state.shape)
    _forward_kernel[grid](*inputs, seen, out, share, xnor, binary, **sizes)
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
        return *uniform.backward(gradient, poses, weight), None, None
    sizes, packed, start = geometry(poses, weight), columns_first(weight), _start(initial, state)
    seen = _claims((poses, packed, state, *start), gradient, sizes, xnor, binary, back=True)
    inputs = poses, packed, state, *start, gradient, seen
    grid, share = by_images(sizes)
    d_state = state.new_zeros(grid[1], *state.shape)
    if not last:
        _state_kernel[grid](*inputs, d_state, share, xnor, binary, **sizes)
    grid, share = by_children(sizes)
    d_poses, d_weight = torch.empty_like(poses), packed.new_empty(grid[1], *packed.shape)
    d_initial = state.new_empty(grid[1], weight.shape[1], weight.shape[0])
    _child_kernel[grid](*inputs, d_poses, d_weight, d_initial, share, xnor, binary, last, **sizes)
    return d_poses, parents_first(d_weight.sum(0)), d_state.sum(0), d_initial.sum(0)


def _claims(inputs: tuple, gradient: Tensor, sizes: dict[str, int], xnor: bool, binary: bool, back: bool) -> Tensor:
    """Return what tiles of parents must know of each other, see `_claim_kernel`; nothing where one tile has all."""
    state = inputs[2]
    if not sizes["TILED"]:
        return state.new_empty(0)
    tiles = triton.cdiv(sizes["count"], sizes["T"])
    runs, share = runs_of(sizes["children"], triton.cdiv(tiling.PROGRAMS, tiles))
    seen = state.new_empty(sizes["count"], sizes["children"], 3)
    _claim_kernel[(tiles, runs)](*inputs, gradient, seen, share, xnor, binary, back, **sizes)
    return seen


def _start(initial: Tensor | None, state: Tensor) -> tuple[Tensor, bool]:
    """Return initial logits and whether there are any."""
    return (state, False) if initial is None else (initial, True)


@triton.jit
def _votes(
    poses, weight, image, last, child, children, J, R, C, M, dtype: tl.constexpr, BINARY: tl.constexpr,
    T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr, j0,
):  # fmt: skip
    """Return votes of one child, [t, j, r, m]; BINARY with 0 where signs cancel."""
    votes = votes_of(poses, weight, image, last, child, children, J, R, C, M, dtype, T, JP, RP, MP, j0)
    if BINARY:
        at, there = column_at(image, last, child, children, 0, R, C, RP)
        u = tl.load(poses + at, mask=there, other=0.0)
        at, there = row_at(child, 0, J, C, M, JP, MP, j0)
        votes = without_rounding(votes, u, tl.load(weight + at, mask=there, other=0.0))
    return votes


@triton.jit
def _logits(votes, state, initial, child, j0, J, R, M, JP: tl.constexpr, STARTS: tl.constexpr, XNOR: tl.constexpr):
    """Return logits of one child, [t, j], -inf beyond the last parent."""
    j = j0 + tl.arange(0, JP)
    logits = agreement(votes, state, R, M, XNOR)
    if STARTS:
        logits += tl.load(initial + child * J + j, mask=j < J, other=0.0)[None, :]
    return tl.where((j < J)[None, :], logits, float("-inf"))


@triton.jit
def _claim_kernel(
    poses, weight, state, initial, STARTS: tl.constexpr, gradient, seen, share, XNOR: tl.constexpr,
    BINARY: tl.constexpr, BACK: tl.constexpr, count, children,
    J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    TILED: tl.constexpr, T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
):  # fmt: skip
    """Compute of each image and child, over all parents, in `seen` [b, i, 3]: the largest logit, the sum of e^(l - it),
    and BACK the sum of e^(l - it) times the gradient of the coupling. Tiles follow each other, and each moves the
    sums to the largest logit so far.
    """
    image, run = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T), tl.program_id(1)
    real = image < count
    for j0 in range(0, J, JP):
        at, mask = parents_at(image, count, J, R, M, JP, RP, MP, j0)
        q = tl.load(state + at, mask=mask, other=0.0)
        begun = real & (j0 > 0)
        for child in range(run * share, tl.minimum(run * share + share, children)):
            v = _votes(poses, weight, image, count, child, children, J, R, C, M, q.dtype, BINARY, T, JP, RP, MP, j0)
            logits = _logits(v, q, initial, child, j0, J, R, M, JP, STARTS, XNOR)
            pair = (image * children + child) * 3
            before = tl.load(seen + pair, mask=begun, other=float("-inf"))
            most = tl.maximum(before, tl.max(logits, 1))
            # e^(before - most) moves what was summed to the new largest logit; it is 0 in the first tile
            e, kept = tl.exp(logits - most[:, None]), tl.exp(before - most)
            whole = tl.load(seen + pair + 1, mask=begun, other=0.0) * kept + tl.sum(e, 1)
            tl.store(seen + pair, most, mask=real)
            tl.store(seen + pair + 1, whole, mask=real)
            if BACK:
                g = tl.load(gradient + at, mask=mask, other=0.0)
                sums = tl.load(seen + pair + 2, mask=begun, other=0.0) * kept + tl.sum(e * inner(v, g), 1)
                tl.store(seen + pair + 2, sums, mask=real)
        tl.debug_barrier()  # what a thread has stored another may load


@triton.jit
def _forward_kernel(
    poses, weight, state, initial, STARTS: tl.constexpr, seen, out, share, XNOR: tl.constexpr, BINARY: tl.constexpr,
    count, children,
    J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    TILED: tl.constexpr, T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
):  # fmt: skip
    """Compute: out [runs, t, j, r, m] of the images, the run of children and the tile of parents of this program."""
    image, run = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T), tl.program_id(1)
    j0 = tl.program_id(2) * JP
    at, mask = parents_at(image, count, J, R, M, JP, RP, MP, j0)
    q = tl.load(state + at, mask=mask, other=0.0)
    total = tl.zeros((T, JP, RP, MP), q.dtype)
    for child in range(run * share, tl.minimum(run * share + share, children)):
        v = _votes(poses, weight, image, count, child, children, J, R, C, M, q.dtype, BINARY, T, JP, RP, MP, j0)
        logits = _logits(v, q, initial, child, j0, J, R, M, JP, STARTS, XNOR)
        coupling = softmax(logits, seen, (image * children + child) * 3, image < count, TILED)
        total += coupling[:, :, None, None] * v  # s_j += c_ij v_ij
    tl.store(out + run * count * J * R * M + at, total, mask=mask)


@triton.jit
def _state_kernel(
    poses, weight, state, initial, STARTS: tl.constexpr, gradient, seen, out, share,
    XNOR: tl.constexpr, BINARY: tl.constexpr, count, children,
    J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    TILED: tl.constexpr, T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
):  # fmt: skip
    """Compute: gradient of the state, like `_forward_kernel`'s sums."""
    image, run = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T), tl.program_id(1)
    j0 = tl.program_id(2) * JP
    at, mask = parents_at(image, count, J, R, M, JP, RP, MP, j0)
    q = tl.load(state + at, mask=mask, other=0.0)
    g = tl.load(gradient + at, mask=mask, other=0.0)
    total = tl.zeros((T, JP, RP, MP), q.dtype)
    for child in range(run * share, tl.minimum(run * share + share, children)):
        v = _votes(poses, weight, image, count, child, children, J, R, C, M, q.dtype, BINARY, T, JP, RP, MP, j0)
        pair = (image * children + child) * 3
        logits = _logits(v, q, initial, child, j0, J, R, M, JP, STARTS, XNOR)
        coupling = softmax(logits, seen, pair, image < count, TILED)
        change = change_of_logits(v, coupling, g, seen, pair, image < count, TILED)
        total += given_to_parents(v, change, R, M, XNOR)  # dS_j += dl_ij v_ij, or dl_ij mean|v| sign(v)
    tl.store(out + run * count * J * R * M + at, total, mask=mask)


@triton.jit
def _child_kernel(
    poses, weight, state, initial, STARTS: tl.constexpr, gradient, seen, d_poses, d_weight, d_initial, share,
    XNOR: tl.constexpr, BINARY: tl.constexpr, LAST: tl.constexpr, count, children,
    J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    TILED: tl.constexpr, T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
):  # fmt: skip
    """Compute: gradients of one child in `share` images, which no other program has: tile after tile."""
    child, run = tl.program_id(0), tl.program_id(1).to(tl.int64)
    last = tl.minimum(run * share + share, count)
    begin = run * children * C * J * M
    for j0 in range(0, J, JP):
        of_initial = tl.zeros((JP,), poses.dtype.element_ty)
        for start in range(run * share, last, T):
            image = start + tl.arange(0, T)
            pair, real = (image * children + child) * 3, image < last
            at, mask = parents_at(image, last, J, R, M, JP, RP, MP, j0)
            q = tl.load(state + at, mask=mask, other=0.0)
            g = tl.load(gradient + at, mask=mask, other=0.0)
            v = _votes(poses, weight, image, last, child, children, J, R, C, M, q.dtype, BINARY, T, JP, RP, MP, j0)
            logits = _logits(v, q, initial, child, j0, J, R, M, JP, STARTS, XNOR)
            coupling = softmax(logits, seen, pair, real, TILED)
            change = change_of_logits(v, coupling, g, seen, pair, real, TILED)
            of_initial += tl.sum(tl.where(real[:, None], change, 0.0), 0)
            # dv_ij = c_ij g_j + dl_ij S_j
            if LAST:  # v . S is a constant to the gradient
                d_votes = coupling[:, :, None, None] * g
            else:
                d_votes = coupling[:, :, None, None] * g + given_to_votes(v, q, change, R, M, XNOR)
            give_back(
                d_votes, poses, weight, d_poses, d_weight, image, start - run * share, last, begin, child, children,
                J, R, C, M, JP, RP, MP, j0,
            )  # fmt: skip
        j = j0 + tl.arange(0, JP)
        tl.store(d_initial + (run * children + child) * J + j, of_initial, mask=j < J)
