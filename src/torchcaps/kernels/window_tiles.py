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
