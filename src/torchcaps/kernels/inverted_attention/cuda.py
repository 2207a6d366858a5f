"""The step on CUDA, in Triton: a program takes a few positions, or one child; no atomic sums. See README.md.

Tensors in a program are as in `torchcaps.kernels.window_tiles`.
"""

# The body of a kernel is Triton's language, and a pointer no tensor.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchcaps.kernels.tiles import inner, parents_at
from torchcaps.kernels.types import widest
from torchcaps.kernels.window_tiles import child_at, column_of, row_of, window_votes

ELEMENTS = 2048  # of the votes that a program has at a time: what registers hold, with query, gradient and sums
PROGRAMS = 1024  # wanted, of those that own one type of children and a share of the images


def forward(poses: Tensor, weight: Tensor, query: Tensor, rows: int, stride: int, padding: int) -> Tensor:
    """See `op.attend`."""
    arrays, sizes = _inputs(poses, weight, query, rows, stride, padding)
    out = torch.empty_like(arrays[2])
    _forward_kernel[_tiles(query, sizes)](*arrays, out, **sizes)
    return out


def backward(
    gradient: Tensor, poses: Tensor, weight: Tensor, query: Tensor, rows: int, stride: int, padding: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `op.attend_backward`."""
    arrays, sizes = _inputs(poses, weight, query, rows, stride, padding)
    gradient = gradient.contiguous()
    d_query = torch.empty_like(arrays[2])
    _query_kernel[_tiles(query, sizes)](*arrays, gradient, d_query, **sizes)
    images, types = poses.shape[0], poses.shape[3]
    share = -(-images // max(1, PROGRAMS // types))  # images of a program
    d_poses = torch.zeros_like(arrays[0], dtype=d_query.dtype)
    d_weight = d_query.new_zeros(-(-images // share), *arrays[1].shape)
    grid = (types, len(d_weight))
    _child_kernel[grid](*arrays, gradient, d_poses, d_weight, share * query.shape[1], **sizes)
    return d_poses, d_weight.sum(0).permute(4, 0, 1, 2, 3, 5), d_query


def _tiles(query: Tensor, sizes: dict[str, int]) -> tuple[int]:
    return (triton.cdiv(query.shape[0] * query.shape[1], sizes["T"]),)


def _inputs(
    poses: Tensor, weight: Tensor, query: Tensor, rows: int, stride: int, padding: int
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, int]]:
    """Contiguous poses, weight [kh, kw, n, c, j, m] and query of a type fit for sums; the sizes of a kernel."""
    query = query.to(widest(poses, weight, query, at_least=torch.float32)).contiguous()
    images, height, width, types, _ = poses.shape
    parents, kh, kw, _, columns, m = weight.shape
    padded = {"JP": parents, "RP": rows, "MP": m}
    padded = {name: triton.next_power_of_2(size) for name, size in padded.items()}
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
        "T": max(1, ELEMENTS // per_position),
        "num_warps": 4 if per_position <= ELEMENTS else 8,
        **padded,
    }
    return (poses.contiguous(), weight.permute(1, 2, 3, 4, 0, 5).contiguous(), query), sizes


@triton.jit
def _couple(votes, query, J, JP: tl.constexpr):
    """Softmax over parents, [t, j]."""
    there = (tl.arange(0, JP) < J)[None, :]
    logits = tl.where(there, inner(votes, query), float("-inf"))
    e = tl.exp(logits - tl.max(logits, 1)[:, None])
    return e / tl.sum(e, 1)[:, None]


@triton.jit
def _change(votes, coupling, gradient):
    """Gradient of the logits, [t, j]."""
    agreement = inner(votes, gradient)
    return coupling * (agreement - tl.sum(coupling * agreement, 1)[:, None])


@triton.jit
def _forward_kernel(
    poses, weight, query, out, count, height, width, across, places, stride, padding, types,
    KH: tl.constexpr, KW: tl.constexpr, J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
):  # fmt: skip
    """out [t, j, r, m] of the positions of this program."""
    position = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T)
    at, mask = parents_at(position, count, J, R, M, JP, RP, MP)
    q = tl.load(query + at, mask=mask, other=0.0)
    total = tl.zeros((T, JP, RP, MP), q.dtype)
    for k in range(KH * KW):
        for n in range(types):
            child, present = child_at(
                position, k, n, count, height, width, across, places, stride, padding, types, KW, R * C
            )
            votes = window_votes(
                poses, child, present, weight, (k * types + n) * C * J * M, q, J, R, C, M, T, JP, RP, MP
            )
            total += _couple(votes, q, J, JP)[:, :, None, None] * votes
    tl.store(out + at, total, mask=mask)


@triton.jit
def _query_kernel(
    poses, weight, query, gradient, out, count, height, width, across, places, stride, padding, types,
    KH: tl.constexpr, KW: tl.constexpr, J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
):  # fmt: skip
    """out = sum_i l v of the positions of this program."""
    position = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T)
    at, mask = parents_at(position, count, J, R, M, JP, RP, MP)
    q = tl.load(query + at, mask=mask, other=0.0)
    g = tl.load(gradient + at, mask=mask, other=0.0).to(q.dtype)
    total = tl.zeros((T, JP, RP, MP), q.dtype)
    for k in range(KH * KW):
        for n in range(types):
            child, present = child_at(
                position, k, n, count, height, width, across, places, stride, padding, types, KW, R * C
            )
            votes = window_votes(
                poses, child, present, weight, (k * types + n) * C * J * M, q, J, R, C, M, T, JP, RP, MP
            )
            change = _change(votes, _couple(votes, q, J, JP), g)
            total += change[:, :, None, None] * votes
    tl.store(out + at, total, mask=mask)


@triton.jit
def _child_kernel(
    poses, weight, query, gradient, d_poses, d_weight, share,
    count, height, width, across, places, stride, padding, types,
    KH: tl.constexpr, KW: tl.constexpr, J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
):  # fmt: skip
    """Children of one type in `share` positions, which no other program has, and their part of the weights' gradient.

    Windows share a child only at different offsets, which come one after another.
    """
    n, part = tl.program_id(0), tl.program_id(1).to(tl.int64)
    first = part * share
    last = tl.minimum(first + share, count)
    for k in range(KH * KW):
        w = (k * types + n) * C * J * M
        own = part * KH * KW * types * C * J * M + w
        for start in range(first, last, T):
            position = start + tl.arange(0, T)
            at, mask = parents_at(position, last, J, R, M, JP, RP, MP)
            q = tl.load(query + at, mask=mask, other=0.0)
            g = tl.load(gradient + at, mask=mask, other=0.0).to(q.dtype)
            child, present = child_at(
                position, k, n, last, height, width, across, places, stride, padding, types, KW, R * C
            )
            votes = window_votes(poses, child, present, weight, w, q, J, R, C, M, T, JP, RP, MP)
            coupling = _couple(votes, q, J, JP)
            d_votes = coupling[:, :, None, None] * g + _change(votes, coupling, g)[:, :, None, None] * q
            for c in range(C):
                u, place, r = column_of(poses, child, present, c, R, C, RP)
                row, _, _ = row_of(weight, w, c, J, M, JP, MP)
                d_u = tl.sum(tl.sum(d_votes * row.to(q.dtype)[None, :, None, :], 3), 1)
                inside = present[:, None] & (r < R)[None, :]
                tl.store(d_poses + place, tl.load(d_poses + place, mask=inside, other=0.0) + d_u, mask=inside)
                d_row, where, real = row_of(d_weight, own, c, J, M, JP, MP)
                d_row += tl.sum(tl.sum(d_votes * u.to(q.dtype)[:, None, :, None], 2), 0)
                tl.store(d_weight + where, d_row, mask=real)
            tl.debug_barrier()  # what a thread has stored another may load
