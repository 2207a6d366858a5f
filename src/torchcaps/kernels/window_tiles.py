"""Tiles of the votes of convolutional capsules in Triton, for a few positions and one child of their windows at a time.

Tensors in a program are [t, j, r, m]: positions, parents, rows and columns of a vote, each a power of two, with zeros
beyond what is there. A vote is a sum over the child's columns c of an outer product, so nothing is of its size but
registers. Weights lie as [k, n, c, j, m], so that what a product reads is one piece of memory. Where parents are so
many that their votes would spill, a program has a tile of them at a time, from `j0` on. `torchcaps.kernels.tiles` says
how to read a kernel. Importing this module imports Triton.
"""

# The body of a kernel is Triton's language, and a pointer no tensor.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

PLACES = 2**31
ELEMENTS = 2048  # of the votes that a program has at a time: what registers hold, with what belongs to its parents
PROGRAMS = 1024  # wanted
FUSION = {
    "enable_fp_fusion": True
}  # of every launch: products are added without rounding, whatever Triton's default is
WIDE = 2048  # of the votes of one child at a position, elements beyond which parents are taken in tiles of a quarter


def pad(parents: int, rows: int, m: int, tiled: bool = True) -> dict[str, int]:
    """Return powers of two for parents, rows and columns of a vote; where `tiled`, of no more parents than registers
    hold.
    """
    padded = [triton.next_power_of_2(x) for x in (parents, rows, m)]
    if tiled and padded[0] * padded[1] * padded[2] > WIDE:
        padded[0] = max(1, WIDE // (4 * padded[1] * padded[2]))
    return dict(zip(("JP", "RP", "MP"), padded, strict=True))


def check_countable(weight: Tensor) -> None:
    """Raise ValueError for weights of so many numbers that a place among them has no 32 bits, in which kernels count.

    Places in children and parents have 64 bits, since batches may be of any size.
    """
    if weight.numel() >= PLACES:
        raise ValueError(f"the weights are {weight.numel():,} numbers, and the kernel takes less than {PLACES:,}")


def geometry(poses: Tensor, weight: Tensor, rows: int, stride: int, padding: int) -> dict[str, int]:
    """Return the sizes that kernels take, of poses [b, h, w, n, rows * c] and weight [j, kh, kw, n, c, m]."""
    check_countable(weight)
    images, height, width, types, _ = poses.shape
    parents, kh, kw, _, columns, m = weight.shape
    padded = pad(parents, rows, m)
    per_position = padded["JP"] * padded["RP"] * padded["MP"]
    down, across = ((size + 2 * padding - k) // stride + 1 for size, k in ((height, kh), (width, kw)))
    return {
        "count": images * down * across,
        "height": height,
        "width": width,
        "across": across,
        "places": down * across,
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


def children_of(sizes: dict[str, int]) -> int:
    """Return the number of children in a window."""
    return sizes["KH"] * sizes["KW"] * sizes["types"]


def by_positions(sizes: dict[str, int]) -> tuple[tuple[int, int, int], int]:
    """Return a grid of (tiles of positions, runs of children, tiles of parents), and how many children are in a run."""
    tiles, across = triton.cdiv(sizes["count"], sizes["T"]), triton.cdiv(sizes["J"], sizes["JP"])
    runs, share = runs_of(children_of(sizes), triton.cdiv(PROGRAMS, tiles * across))
    return (tiles, runs, across), share


def by_types(sizes: dict[str, int], images: int) -> tuple[tuple[int, int], int]:
    """Return a grid of (types of children, runs of images), and how many positions are in a run."""
    share = -(-images // max(1, PROGRAMS // sizes["types"]))  # images of a program
    return (sizes["types"], -(-images // share)), share * sizes["places"]


def offsets_first(weight: Tensor) -> Tensor:
    """Map [j, kh, kw, n, c, m] -> [kh, kw, n, c, j, m]."""
    return weight.permute(1, 2, 3, 4, 0, 5).contiguous()


def parents_first(weight: Tensor) -> Tensor:
    """Map [kh, kw, n, c, j, m] -> [j, kh, kw, n, c, m]."""
    return weight.permute(4, 0, 1, 2, 3, 5)


def runs_of(children: int, programs: int) -> tuple[int, int]:
    """Return how many runs children are split into, `programs` at most, and how many are in a run."""
    share = triton.cdiv(children, max(1, programs))
    return triton.cdiv(children, share), share


def summed(parts: Tensor) -> Tensor:
    """Return the sum over runs, which come first."""
    return parts[0] if len(parts) == 1 else parts.sum(0)


@triton.jit
def child_at(position, k, n, count, height, width, across, places, stride, padding, types, KW, size):
    """Return where the child n at offset k of each window begins, and whether it is there, [t]."""
    image, place = position // places, position % places  # positions count through all images
    y = place // across * stride + k // KW - padding  # k counts through the kernel's rows, KW to a row
    x = place % across * stride + k % KW - padding
    present = (position < count) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return (((image * height + y) * width + x) * types + n) * size, present


@triton.jit
def column_of(poses, child, present, c, R, C, RP: tl.constexpr):
    """Return column c of the poses, [t, r]."""
    r = tl.arange(0, RP)
    at = child[:, None] + r[None, :] * C + c
    return tl.load(poses + at, mask=present[:, None] & (r < R)[None, :], other=0.0), at, r


@triton.jit
def row_of(weight, at, c, J, M, JP: tl.constexpr, MP: tl.constexpr, j0=0):
    """Return row c of the weights of one child, [j, m] from `j0` on, and where it lies."""
    j, m = j0 + tl.arange(0, JP), tl.arange(0, MP)
    where = at + c * J * M + j[:, None] * M + m[None, :]
    mask = (j < J)[:, None] & (m < M)[None, :]
    return tl.load(weight + where, mask=mask, other=0.0), where, mask


@triton.jit
def window_votes(
    poses, child, present, weight, at, query, J, R, C, M,
    T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr, j0=0,
):  # fmt: skip
    """Return votes of one child for the parents from `j0` on, [t, j, r, m], in the type of `query`."""
    votes = tl.zeros((T, JP, RP, MP), query.dtype)
    for c in range(C):  # v[t, j, r, m] = sum_c u[t, r, c] W[j, c, m]
        u, _, _ = column_of(poses, child, present, c, R, C, RP)
        w, _, _ = row_of(weight, at, c, J, M, JP, MP, j0)
        votes += u.to(query.dtype)[:, None, :, None] * w.to(query.dtype)[None, :, None, :]
    return votes


@triton.jit
def give_back(
    d_votes, poses, weight, d_poses, d_weight, child, present, at, own, J, R, C, M,
    JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr, j0=0,
):  # fmt: skip
    """Add what d_votes [t, j, r, m] makes of the gradients of one child: of its poses, and of its weights, which begin
    at `at` in `weight` and at `own` in `d_weight`, where this program alone writes.
    """
    for c in range(C):  # du_i += sum_j dv_ij W_ij', and dW_ij += sum_t u_i' dv_ij, by columns of u
        u, place, r = column_of(poses, child, present, c, R, C, RP)
        row, _, _ = row_of(weight, at, c, J, M, JP, MP, j0)
        d_u = tl.sum(tl.sum(d_votes * row.to(d_votes.dtype)[None, :, None, :], 3), 1)
        inside = present[:, None] & (r < R)[None, :]
        tl.store(d_poses + place, tl.load(d_poses + place, mask=inside, other=0.0) + d_u, mask=inside)
        d_row, where, exists = row_of(d_weight, own, c, J, M, JP, MP, j0)
        d_row += tl.sum(tl.sum(d_votes * u.to(d_votes.dtype)[:, None, :, None], 2), 0)
        tl.store(d_weight + where, d_row, mask=exists)
    tl.debug_barrier()  # what a thread has stored another may load
