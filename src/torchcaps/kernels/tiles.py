"""Tiles of the votes of linear capsules in Triton, for a few images and one child at a time.

Tensors in a program are [t, j, r, m]: images, parents, rows and columns of a vote, each a power of two, with zeros
beyond what is there. A vote is a sum over the child's columns c of an outer product, so nothing is of its size but
registers. Weights lie as [i, c, j, m], so that what a product reads is one piece of memory. Where parents are so
many that their votes would spill, a program has a tile of them at a time, from `j0` on. Importing this module imports
Triton.

To read a kernel, take it for a function that a GPU calls once for each place of a grid, all calls at the same time and
in no order: `tl.program_id(0)` is the place along the grid's first side. A tensor that it is given is a pointer:

    tl.load(x + at, mask, other=0.0)    torch.where(mask, x.flatten()[at], 0.0), where `at` may be of any shape
    tl.store(x + at, v, mask)           x.flatten()[at[mask]] = v[mask]
    tl.sum(v, 1), tl.max(v, 1)          v.sum(1), v.amax(1)
    tl.arange(0, T), tl.where, tl.exp   as torch's

What is marked `tl.constexpr` is known when a kernel is compiled: sizes of tensors, and flags, so that a branch which is
not taken is not there.
"""

# The body of a kernel is Triton's language, and a pointer no tensor.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from torchcaps.kernels.window_tiles import FUSION, check_countable, pad

ELEMENTS = 2048  # of the votes that a program has at a time: what registers hold, with parents and sums
PROGRAMS = 1024  # wanted


def geometry(poses: Tensor, weight: Tensor) -> dict[str, int]:
    """Return the sizes that every kernel takes, of poses [b, i, rows * columns] and weight [j, i, columns, m]."""
    check_countable(weight)
    images, children, size = poses.shape
    parents, _, columns, m = weight.shape
    rows = size // columns
    padded = pad(parents, rows, m)
    elements = padded["JP"] * padded["RP"] * padded["MP"]
    sizes = {"count": images, "children": children, "J": parents, "R": rows, "C": columns, "M": m}
    warps = 4 if elements <= ELEMENTS else 8
    tile = {"T": max(1, ELEMENTS // elements), "TILED": padded["JP"] < parents}
    return {**sizes, **tile, **padded, "num_warps": warps, **FUSION}


def by_images(sizes: dict[str, int]) -> tuple[tuple[int, int, int], int]:
    """Return a grid of (tiles of images, runs of children, tiles of parents), and how many children are in a run."""
    tiles, across = triton.cdiv(sizes["count"], sizes["T"]), triton.cdiv(sizes["J"], sizes["JP"])
    share = triton.cdiv(sizes["children"], triton.cdiv(PROGRAMS, tiles * across))
    return (tiles, triton.cdiv(sizes["children"], share), across), share


def by_children(sizes: dict[str, int]) -> tuple[tuple[int, int], int]:
    """Return a grid of (children, runs of images), and how many images are in a run."""
    runs = triton.cdiv(PROGRAMS, sizes["children"])
    share = triton.cdiv(triton.cdiv(sizes["count"], runs), sizes["T"]) * sizes["T"]
    return (sizes["children"], triton.cdiv(sizes["count"], share)), share


def columns_first(weight: Tensor) -> Tensor:
    """Map [j, i, c, m] -> [i, c, j, m]."""
    return weight.permute(1, 2, 0, 3).contiguous()


def parents_first(weight: Tensor) -> Tensor:
    """Map [i, c, j, m] -> [j, i, c, m]."""
    return weight.permute(2, 0, 1, 3).contiguous()


@triton.jit
def parents_at(image, last, J, R, M, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr, j0=0):
    """Return places [t, j, r, m] of parents from `j0` on in [b, j, r, m], and which of them exist: images before
    `last`.
    """
    j = j0 + tl.arange(0, JP)[None, :, None, None]
    r = tl.arange(0, RP)[None, None, :, None]
    m = tl.arange(0, MP)[None, None, None, :]
    t = image[:, None, None, None]
    return ((t * J + j) * R + r) * M + m, (t < last) & (j < J) & (r < R) & (m < M)


@triton.jit
def column_at(image, last, child, children, c, R, C, RP: tl.constexpr):
    """Return places [t, r] of column c of a child's poses, and which of them exist."""
    r = tl.arange(0, RP)
    return ((image * children + child) * R * C)[:, None] + (r * C)[None, :] + c, (image < last)[:, None] & (r < R)[
        None, :
    ]


@triton.jit
def row_at(child, c, J, C, M, JP: tl.constexpr, MP: tl.constexpr, j0=0):
    """Return places [j, m] from `j0` on of row c of a child's weights [i, c, j, m], and which of them exist."""
    j, m = j0 + tl.arange(0, JP), tl.arange(0, MP)
    return ((child * C + c) * J + j[:, None]) * M + m[None, :], (j < J)[:, None] & (m < M)[None, :]


@triton.jit
def votes_of(
    poses, weight, image, last, child, children, J, R, C, M, dtype: tl.constexpr,
    T: tl.constexpr, JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr, j0=0,
):  # fmt: skip
    """Return votes of one child for the parents from `j0` on, [t, j, r, m]."""
    votes = tl.zeros((T, JP, RP, MP), dtype)
    for c in range(C):  # v[t, j, r, m] = sum_c u[t, r, c] W[j, c, m]
        at, there = column_at(image, last, child, children, c, R, C, RP)
        u = tl.load(poses + at, mask=there, other=0.0)
        at, there = row_at(child, c, J, C, M, JP, MP, j0)
        w = tl.load(weight + at, mask=there, other=0.0)
        votes += u[:, None, :, None] * w[None, :, None, :]
    return votes


@triton.jit
def give_back(
    d_votes, poses, weight, d_poses, d_weight, image, done, last, begin, child, children, J, R, C, M,
    JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr, j0=0,
):  # fmt: skip
    """Add what d_votes [t, j, r, m] makes of the gradients of one child: of its poses after the parents before `j0`,
    and of its weights after `done` images.

    d_weight [runs, i, c, j, m] has a place at `begin` that this program alone writes to.
    """
    for c in range(C):
        at, there = column_at(image, last, child, children, c, R, C, RP)
        u = tl.load(poses + at, mask=there, other=0.0)
        place, real = row_at(child, c, J, C, M, JP, MP, j0)
        w = tl.load(weight + place, mask=real, other=0.0)
        # du[t, r, c] = sum_jm dv[t, j, r, m] W[j, c, m]; memory is fresh, so the first tile of parents adds to nothing
        others = tl.load(d_poses + at, mask=there & (j0 > 0), other=0.0)
        tl.store(d_poses + at, others + tl.sum(tl.sum(d_votes * w[None, :, None, :], 3), 1), mask=there)
        # dW[j, c, m] = sum_tr u[t, r, c] dv[t, j, r, m]; so do the first images
        d_w = tl.sum(tl.sum(d_votes * u[:, None, :, None], 2), 0)
        before = tl.load(d_weight + begin + place, mask=real, other=0.0)
        tl.store(d_weight + begin + place, d_w + tl.where(done > 0, before, 0.0), mask=real)
    tl.debug_barrier()  # what a thread has stored another may load


@triton.jit
def inner(x, y):
    """Sum over the elements of a pose, [t, j]."""
    return tl.sum(tl.sum(x * y, 3), 2)


@triton.jit
def mean_size(votes, R, M):
    """Return mean size of a vote's elements, [t, j]."""
    return tl.sum(tl.sum(tl.abs(votes), 3), 2) / (R * M)


@triton.jit
def agreement(votes, parents, R, M, XNOR: tl.constexpr):
    """Return v . p, [t, j]; XNOR mean|v| sum_d sign(v_d) p_d, in which the sign of 0 is -1."""
    if XNOR:
        found = tl.sum(tl.sum(tl.where(votes > 0, parents, -parents), 3), 2) * mean_size(votes, R, M)
    else:
        found = inner(votes, parents)
    return found


@triton.jit
def given_to_parents(votes, change, R, M, XNOR: tl.constexpr):
    """Return what the `change` of an agreement [t, j] gives the gradient of the parents, [t, j, r, m]."""
    if XNOR:
        size = (change * mean_size(votes, R, M))[:, :, None, None]
        given = tl.where(votes > 0, size, -size)
    else:
        given = change[:, :, None, None] * votes
    return given


@triton.jit
def given_to_votes(votes, parents, change, R, M, XNOR: tl.constexpr):
    """Return what it gives the gradient of the votes: XNOR straight through the sign, where |v| <= 1."""
    if XNOR:
        size = (change * mean_size(votes, R, M))[:, :, None, None]
        given = tl.where(tl.abs(votes) <= 1, parents * size, 0.0)
    else:
        given = change[:, :, None, None] * parents
    return given


@triton.jit
def without_rounding(votes, u, w):
    """Return 0 for what is less than half a term of its sum, where terms differ in sign alone: rounding left it.

    `u` [t, r] is one column of the poses, `w` [j, m] one row of the weights: all have the sizes of these.
    """
    least = 0.5 * tl.abs(u)[:, None, :, None] * tl.abs(w)[None, :, None, :]
    return tl.where(tl.abs(votes) < least, 0.0, votes)


@triton.jit
def softmax(logits, seen, pair, real, TILED: tl.constexpr):
    """Return the softmax over parents, [t, j]: over all of them, where this tile has a part."""
    if TILED:  # the largest logit of all tiles and the sum of e^(l - it), which a pass before has found
        most = tl.load(seen + pair, mask=real, other=0.0)
        whole = tl.load(seen + pair + 1, mask=real, other=1.0)
    else:
        most = tl.max(logits, 1)
        whole = tl.sum(tl.exp(logits - most[:, None]), 1)
    return tl.exp(logits - most[:, None]) / whole[:, None]


@triton.jit
def change_of_logits(votes, coupling, gradient, seen, pair, real, TILED: tl.constexpr):
    """Return the gradient of the logits, [t, j]: that of the coupling, less its mean over all parents."""
    of_coupling = inner(votes, gradient)  # v_ij . g_j
    if TILED:  # sum_k c_ik v_ik . g_k, as the sum of e^(l - M) v . g over that of e^(l - M)
        whole = tl.load(seen + pair + 1, mask=real, other=1.0)
        mean = tl.load(seen + pair + 2, mask=real, other=0.0) / whole
    else:
        mean = tl.sum(coupling * of_coupling, 1)
    return coupling * (of_coupling - mean[:, None])
