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

from torchcaps.kernels.tiles import FUSION, change_of_logits, inner, parents_at, softmax
from torchcaps.kernels.types import widest
from torchcaps.kernels.window_tiles import (
    check_countable,
    child_at,
    column_of,
    pad,
    row_of,
    runs_of,
    summed,
    window_votes,
)

ELEMENTS = 2048  # of the votes that a program has at a time: what registers hold, with query, gradient and sums
PROGRAMS = 1024  # wanted


def forward(poses: Tensor, weight: Tensor, query: Tensor, rows: int, stride: int, padding: int) -> Tensor:
    """See `op.attend`."""
    arrays, sizes = _inputs(poses, weight, query, rows, stride, padding)
    seen = _claims(arrays, arrays[2], sizes, back=False)
    grid, share = _by_positions(sizes)
    out = arrays[2].new_empty(grid[1], *query.shape)
    _forward_kernel[grid](*arrays, seen, out, share, **sizes)
    return summed(out)


def backward(
    gradient: Tensor, poses: Tensor, weight: Tensor, query: Tensor, rows: int, stride: int, padding: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `op.attend_backward`."""
    arrays, sizes = _inputs(poses, weight, query, rows, stride, padding)
    gradient = gradient.contiguous()
    seen = _claims(arrays, gradient, sizes, back=True)
    grid, share = _by_positions(sizes)
    d_query = arrays[2].new_empty(grid[1], *query.shape)
    _query_kernel[grid](*arrays, gradient, seen, d_query, share, **sizes)
    images, types = poses.shape[0], poses.shape[3]
    share = -(-images // max(1, PROGRAMS // types))  # images of a program
    d_poses = torch.zeros_like(arrays[0], dtype=d_query.dtype)
    d_weight = d_query.new_zeros(-(-images // share), *arrays[1].shape)
    grid = (types, len(d_weight))
    _child_kernel[grid](*arrays, gradient, seen, d_poses, d_weight, share * query.shape[1], **sizes)
    return d_poses, d_weight.sum(0).permute(4, 0, 1, 2, 3, 5), summed(d_query)


def _by_positions(sizes: dict[str, int]) -> tuple[tuple[int, int, int], int]:
    """Return a grid of (tiles of positions, runs of children, tiles of parents), and how many children are in a run."""
    tiles, across = triton.cdiv(sizes["count"], sizes["T"]), triton.cdiv(sizes["J"], sizes["JP"])
    runs, share = runs_of(_children(sizes), triton.cdiv(PROGRAMS, tiles * across))
    return (tiles, runs, across), share


def _children(sizes: dict[str, int]) -> int:
    """Return the number of children in a window."""
    return sizes["KH"] * sizes["KW"] * sizes["types"]


def _claims(arrays: tuple[Tensor, Tensor, Tensor], gradient: Tensor, sizes: dict[str, int], back: bool) -> Tensor:
    """Return what tiles of parents must know of each other, see `_claim_kernel`; nothing where one tile has all of
    them.
    """
    if not sizes["TILED"]:
        return arrays[2].new_empty(0)
    tiles = triton.cdiv(sizes["count"], sizes["T"])
    runs, share = runs_of(_children(sizes), triton.cdiv(PROGRAMS, tiles))
    seen = arrays[2].new_empty(sizes["count"], _children(sizes), 3)
    _claim_kernel[(tiles, runs)](*arrays, gradient, seen, share, back, **sizes)
    return seen


def _inputs(
    poses: Tensor, weight: Tensor, query: Tensor, rows: int, stride: int, padding: int
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, int]]:
    """Return contiguous poses, weight [kh, kw, n, c, j, m] and query of a type fit for sums; the sizes of a kernel."""
    check_countable(weight)
    query = query.to(widest(poses, weight, query, at_least=torch.float32)).contiguous()
    images, height, width, types, _ = poses.shape
    parents, kh, kw, _, columns, m = weight.shape
    padded = pad(parents, rows, m)
    per_position = padded["JP"] * padded["RP"] * padded["MP"]
    across = (width + 2 * padding - kw) // stride + 1
    sizes = {
        "count": images * query.shape[1],
        "height": height,
        "width": width,
        "across": across,
        "places": query.shape[1],
        "stride": stride,
        "padding": padding,
        "types": types,
        "KH": kh,
        "KW": kw,
        "J": parents,
        "R": rows,
        "C": columns,
        "M": m,
        "TILED": padded["JP"] < parents,
        "T": max(1, ELEMENTS // per_position),
        "num_warps": 4 if per_position <= ELEMENTS else 8,
        **FUSION,
        **padded,
    }
    return (poses.contiguous(), weight.permute(1, 2, 3, 4, 0, 5).contiguous(), query), sizes


@triton.jit
def _couple(votes, query, seen, pair, real, j0, J, JP: tl.constexpr, TILED: tl.constexpr):
    """Return softmax over parents, [t, j]: of all of them, where this tile has a part."""
    there = (j0 + tl.arange(0, JP) < J)[None, :]
    logits = tl.where(there, inner(votes, query), float("-inf"))
    return softmax(logits, seen, pair, real, TILED)


@triton.jit
def _claim_kernel(
    poses, weight, query, gradient, seen, share, BACK: tl.constexpr,
    count, height, width, across, places, stride, padding, types,
    KH: tl.constexpr, KW: tl.constexpr, J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    TILED: tl.constexpr, T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
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
        there = (j0 + tl.arange(0, JP) < J)[None, :]
        begun = real & (j0 > 0)
        for index in range(run * share, tl.minimum(run * share + share, children)):
            child, present = child_at(
                position, index // types, index % types, count, height, width, across, places, stride, padding, types,
                KW, R * C,
            )  # fmt: skip
            votes = window_votes(poses, child, present, weight, index * C * J * M, q, J, R, C, M, T, JP, RP, MP, j0)
            logits = tl.where(there, inner(votes, q), float("-inf"))
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
        votes = window_votes(poses, child, present, weight, index * C * J * M, q, J, R, C, M, T, JP, RP, MP, j0)
        pair = (position * children + index) * 3
        # s_j += c_ij v_ij
        total += _couple(votes, q, seen, pair, position < count, j0, J, JP, TILED)[:, :, None, None] * votes
    tl.store(out + run.to(tl.int64) * count * J * R * M + at, total, mask=mask)


@triton.jit
def _query_kernel(
    poses, weight, query, gradient, seen, out, share, count, height, width, across, places, stride, padding, types,
    KH: tl.constexpr, KW: tl.constexpr, J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    TILED: tl.constexpr, T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
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
        votes = window_votes(poses, child, present, weight, index * C * J * M, q, J, R, C, M, T, JP, RP, MP, j0)
        pair = (position * children + index) * 3
        coupling = _couple(votes, q, seen, pair, real, j0, J, JP, TILED)
        # dq_j += l_ij v_ij
        total += change_of_logits(votes, coupling, g, seen, pair, real, TILED)[:, :, None, None] * votes
    tl.store(out + run.to(tl.int64) * count * J * R * M + at, total, mask=mask)


@triton.jit
def _child_kernel(
    poses, weight, query, gradient, seen, d_poses, d_weight, share,
    count, height, width, across, places, stride, padding, types,
    KH: tl.constexpr, KW: tl.constexpr, J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    TILED: tl.constexpr, T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
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
                votes = window_votes(poses, child, present, weight, w, q, J, R, C, M, T, JP, RP, MP, j0)
                coupling = _couple(votes, q, seen, pair, real, j0, J, JP, TILED)
                change = change_of_logits(votes, coupling, g, seen, pair, real, TILED)
                d_votes = coupling[:, :, None, None] * g + change[:, :, None, None] * q  # dv_ij = c_ij g_j + l_ij q_j
                for c in range(C):  # du_i += sum_j dv_ij W_ij', and dW_ij += sum_t u_i' dv_ij, by columns of u
                    u, place, r = column_of(poses, child, present, c, R, C, RP)
                    row, _, _ = row_of(weight, w, c, J, M, JP, MP, j0)
                    d_u = tl.sum(tl.sum(d_votes * row.to(q.dtype)[None, :, None, :], 3), 1)
                    inside = present[:, None] & (r < R)[None, :]
                    tl.store(d_poses + place, tl.load(d_poses + place, mask=inside, other=0.0) + d_u, mask=inside)
                    d_row, where, exists = row_of(d_weight, own, c, J, M, JP, MP, j0)
                    d_row += tl.sum(tl.sum(d_votes * u.to(q.dtype)[:, None, :, None], 2), 0)
                    tl.store(d_weight + where, d_row, mask=exists)
                tl.debug_barrier()  # what a thread has stored another may load
