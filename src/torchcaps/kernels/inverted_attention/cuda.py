"""The step on CUDA, in Triton: a program takes a few positions, or one child; no atomic sums. See README.md.

Tensors in a program are as in `torchcaps.kernels.window_tiles`, and `torchcaps.kernels.tiles` says how to read a
kernel. In each, q is q of README.md, g the gradient of s, `coupling` c and `change` l, the gradient of the logits. Sums
over children are of a program's run of them, and torch adds the runs.
"""

# The body of a kernel is Triton's language, and a pointer no tensor.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchcaps.kernels import window_tiles
from torchcaps.kernels.tiles import (
    agreement,
    change_of_logits,
    given_to_parents,
    given_to_votes,
    inner,
    parents_at,
    softmax,
    without_rounding,
)
from torchcaps.kernels.types import widest
from torchcaps.kernels.window_tiles import (
    by_positions,
    by_types,
    child_at,
    children_of,
    column_of,
    geometry,
    give_back,
    offsets_first,
    parents_first,
    row_of,
    runs_of,
    summed,
    window_votes,
)


def forward(
    poses: Tensor, weight: Tensor, query: Tensor, rows: int, stride: int, padding: int, xnor: bool, binary: bool
) -> Tensor:
    """See `op.attend`."""
    arrays, sizes = _inputs(poses, weight, query, rows, stride, padding, xnor, binary)
    seen = _claims(arrays, arrays[2], sizes, back=False)
    grid, share = by_positions(sizes)
    out = arrays[2].new_empty(grid[1], *query.shape)
    _forward_kernel[grid](*arrays, seen, out, share, **sizes)
    return summed(out)


def backward(
    gradient: Tensor,
    poses: Tensor,
    weight: Tensor,
    query: Tensor,
    rows: int,
    stride: int,
    padding: int,
    xnor: bool,
    binary: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `op.attend_backward`."""
    arrays, sizes = _inputs(poses, weight, query, rows, stride, padding, xnor, binary)
    gradient = gradient.contiguous()
    seen = _claims(arrays, gradient, sizes, back=True)
    grid, share = by_positions(sizes)
    d_query = arrays[2].new_empty(grid[1], *query.shape)
    _query_kernel[grid](*arrays, gradient, seen, d_query, share, **sizes)
    grid, share = by_types(sizes, len(poses))
    d_poses = torch.zeros_like(arrays[0], dtype=d_query.dtype)
    d_weight = d_query.new_zeros(grid[1], *arrays[1].shape)
    _child_kernel[grid](*arrays, gradient, seen, d_poses, d_weight, share, **sizes)
    return d_poses, parents_first(d_weight.sum(0)), summed(d_query)


def _claims(arrays: tuple[Tensor, Tensor, Tensor], gradient: Tensor, sizes: dict[str, int], back: bool) -> Tensor:
    """Return what tiles of parents must know of each other, see `_claim_kernel`; nothing where one tile has all of
    them.
    """
    if not sizes["TILED"]:
        return arrays[2].new_empty(0)
    tiles = triton.cdiv(sizes["count"], sizes["T"])
    runs, share = runs_of(children_of(sizes), triton.cdiv(window_tiles.PROGRAMS, tiles))
    seen = arrays[2].new_empty(sizes["count"], children_of(sizes), 3)
    _claim_kernel[(tiles, runs)](*arrays, gradient, seen, share, back, **sizes)
    return seen


def _inputs(
    poses: Tensor, weight: Tensor, query: Tensor, rows: int, stride: int, padding: int, xnor: bool, binary: bool
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, int]]:
    """Return contiguous poses, weight [kh, kw, n, c, j, m] and query of a type fit for sums; the sizes of a kernel."""
    sizes = geometry(poses, weight, rows, stride, padding) | {"XNOR": xnor, "BINARY": binary}
    query = query.to(widest(poses, weight, query, at_least=torch.float32)).contiguous()
    return (poses.contiguous(), offsets_first(weight), query), sizes


@triton.jit
def _votes(
    poses, child, present, weight, at, query, J, R, C, M, BINARY: tl.constexpr,
    T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr, j0,
):  # fmt: skip
    """Return votes of one child for the parents from `j0` on, [t, j, r, m]; BINARY with 0 where signs cancel."""
    votes = window_votes(poses, child, present, weight, at, query, J, R, C, M, T, JP, RP, MP, j0)
    if BINARY:
        u, _, _ = column_of(poses, child, present, 0, R, C, RP)
        w, _, _ = row_of(weight, at, 0, J, M, JP, MP, j0)
        votes = without_rounding(votes, u.to(query.dtype), w.to(query.dtype))
    return votes


@triton.jit
def _logits(votes, query, j0, J, R, M, JP: tl.constexpr, XNOR: tl.constexpr):
    """Return logits of one child, [t, j], -inf beyond the last parent."""
    there = (j0 + tl.arange(0, JP) < J)[None, :]
    return tl.where(there, agreement(votes, query, R, M, XNOR), float("-inf"))


@triton.jit
def _claim_kernel(
    poses, weight, query, gradient, seen, share, BACK: tl.constexpr,
    count, height, width, across, places, stride, padding, types,
    KH: tl.constexpr, KW: tl.constexpr, J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    TILED: tl.constexpr, T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
    XNOR: tl.constexpr, BINARY: tl.constexpr,
):  # fmt: skip
    """Compute: of each position and child of its window, over all parents, in `seen` [positions, i, 3]: the largest
    logit, the sum of e^(l - it), and BACK the sum of e^(l - it) times the agreement with the gradient. Tiles follow
    each other, and each moves the sums to the largest logit so far.
    """
    position, run = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T), tl.program_id(1)
    real, children = position < count, KH * KW * types
    for j0 in range(0, J, JP):
        at, mask = parents_at(position, count, J, R, M, JP, RP, MP, j0)
        q = tl.load(query + at, mask=mask, other=0.0)
        begun = real & (j0 > 0)
        for index in range(run * share, tl.minimum(run * share + share, children)):
            child, present = child_at(
                position, index // types, index % types, count, height, width, across, places, stride, padding, types,
                KW, R * C,
            )  # fmt: skip
            w = index * C * J * M
            votes = _votes(poses, child, present, weight, w, q, J, R, C, M, BINARY, T, JP, RP, MP, j0)
            logits = _logits(votes, q, j0, J, R, M, JP, XNOR)
            pair = (position * children + index) * 3
            before = tl.load(seen + pair, mask=begun, other=float("-inf"))
            most = tl.maximum(before, tl.max(logits, 1))
            # e^(before - most) moves what was summed to the new largest logit; it is 0 in the first tile
            e, kept = tl.exp(logits - most[:, None]), tl.exp(before - most)
            whole = tl.load(seen + pair + 1, mask=begun, other=0.0) * kept + tl.sum(e, 1)
            tl.store(seen + pair, most, mask=real)
            tl.store(seen + pair + 1, whole, mask=real)
            if BACK:
                g = tl.load(gradient + at, mask=mask, other=0.0).to(q.dtype)
                agreed = tl.load(seen + pair + 2, mask=begun, other=0.0) * kept + tl.sum(e * inner(votes, g), 1)
                tl.store(seen + pair + 2, agreed, mask=real)
        tl.debug_barrier()  # what a thread has stored another may load


@triton.jit
def _forward_kernel(
    poses, weight, query, seen, out, share, count, height, width, across, places, stride, padding, types,
    KH: tl.constexpr, KW: tl.constexpr, J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    TILED: tl.constexpr, T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
    XNOR: tl.constexpr, BINARY: tl.constexpr,
):  # fmt: skip
    """Compute: out [runs, t, j, r, m] of the positions, the run of children and the tile of parents of this program."""
    position, run = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T), tl.program_id(1)
    j0, children = tl.program_id(2) * JP, KH * KW * types
    at, mask = parents_at(position, count, J, R, M, JP, RP, MP, j0)
    q = tl.load(query + at, mask=mask, other=0.0)
    total = tl.zeros((T, JP, RP, MP), q.dtype)
    for index in range(run * share, tl.minimum(run * share + share, children)):
        child, present = child_at(
            position, index // types, index % types, count, height, width, across, places, stride, padding, types,
            KW, R * C,
        )  # fmt: skip
        w = index * C * J * M
        votes = _votes(poses, child, present, weight, w, q, J, R, C, M, BINARY, T, JP, RP, MP, j0)
        pair = (position * children + index) * 3
        coupling = softmax(_logits(votes, q, j0, J, R, M, JP, XNOR), seen, pair, position < count, TILED)
        total += coupling[:, :, None, None] * votes  # s_j += c_ij v_ij
    tl.store(out + run.to(tl.int64) * count * J * R * M + at, total, mask=mask)


@triton.jit
def _query_kernel(
    poses, weight, query, gradient, seen, out, share, count, height, width, across, places, stride, padding, types,
    KH: tl.constexpr, KW: tl.constexpr, J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    TILED: tl.constexpr, T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
    XNOR: tl.constexpr, BINARY: tl.constexpr,
):  # fmt: skip
    """Compute: out = sum_i l v, like `_forward_kernel`'s sums."""
    position, run = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T), tl.program_id(1)
    j0, children, real = tl.program_id(2) * JP, KH * KW * types, position < count
    at, mask = parents_at(position, count, J, R, M, JP, RP, MP, j0)
    q = tl.load(query + at, mask=mask, other=0.0)
    g = tl.load(gradient + at, mask=mask, other=0.0).to(q.dtype)
    total = tl.zeros((T, JP, RP, MP), q.dtype)
    for index in range(run * share, tl.minimum(run * share + share, children)):
        child, present = child_at(
            position, index // types, index % types, count, height, width, across, places, stride, padding, types,
            KW, R * C,
        )  # fmt: skip
        w = index * C * J * M
        votes = _votes(poses, child, present, weight, w, q, J, R, C, M, BINARY, T, JP, RP, MP, j0)
        pair = (position * children + index) * 3
        coupling = softmax(_logits(votes, q, j0, J, R, M, JP, XNOR), seen, pair, real, TILED)
        change = change_of_logits(votes, coupling, g, seen, pair, real, TILED)
        total += given_to_parents(votes, change, R, M, XNOR)  # dq_j += l_ij v_ij
    tl.store(out + run.to(tl.int64) * count * J * R * M + at, total, mask=mask)


@triton.jit
def _child_kernel(
    poses, weight, query, gradient, seen, d_poses, d_weight, share,
    count, height, width, across, places, stride, padding, types,
    KH: tl.constexpr, KW: tl.constexpr, J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    TILED: tl.constexpr, T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
    XNOR: tl.constexpr, BINARY: tl.constexpr,
):  # fmt: skip
    """Compute: children of one type in `share` positions, which no other program has, and their part of the weights'
    gradient.

    Windows share a child only at different offsets, which come one after another, as tiles of parents do.
    """
    n, part = tl.program_id(0), tl.program_id(1).to(tl.int64)
    first = part * share
    last = tl.minimum(first + share, count)
    for k in range(KH * KW):
        w = (k * types + n) * C * J * M
        own = part * KH * KW * types * C * J * M + w
        for start in range(first, last, T):
            position = start + tl.arange(0, T)
            child, present = child_at(
                position, k, n, last, height, width, across, places, stride, padding, types, KW, R * C
            )
            pair, real = (position * (KH * KW * types) + k * types + n) * 3, position < last
            for j0 in range(0, J, JP):
                at, mask = parents_at(position, last, J, R, M, JP, RP, MP, j0)
                q = tl.load(query + at, mask=mask, other=0.0)
                g = tl.load(gradient + at, mask=mask, other=0.0).to(q.dtype)
                votes = _votes(poses, child, present, weight, w, q, J, R, C, M, BINARY, T, JP, RP, MP, j0)
                coupling = softmax(_logits(votes, q, j0, J, R, M, JP, XNOR), seen, pair, real, TILED)
                change = change_of_logits(votes, coupling, g, seen, pair, real, TILED)
                # dv_ij = c_ij g_j + l_ij q_j
                d_votes = coupling[:, :, None, None] * g + given_to_votes(votes, q, change, R, M, XNOR)
                give_back(d_votes, poses, weight, d_poses, d_weight, child, present, w, own, J, R, C, M, JP, RP, MP, j0)
