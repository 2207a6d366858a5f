"""The products that votes are made of, and their gradients, with 16 images side by side in a vector.

One child and one parent at a time: `u` is the child's pose [rows, columns], `w` a matrix [columns, m], and the vote
[rows, m] of 16 images stays in the nearest memory for as long as its sums are taken. Arrays are contiguous, places in
them are counted through all dimensions; one in lanes, such as u [..., rows, columns, 16], has 16 images trailing. Lanes
beyond the last image are zeros. Importing this module imports numba.
"""

from __future__ import annotations

import math

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from torchcaps.kernels.products import multiply, outer_row
from torchcaps.kernels.simd import LANES, exp, inlined, load, select, store, store_totals, subroutine, transpose, zeros

BLOCK = (LANES, LANES)  # of numbers that are transposed


def blocks(images: int) -> int:
    """Return how many times 16 images there are, the last of them not whole."""
    return -(-images // LANES)


def fill_lanes(poses: Tensor, weight: Tensor, padding: int) -> bool:
    """Return whether images are to stand side by side, and not 16 parents of eight positions: where one window sees all
    of poses [b, h, w, n, rows * c] by weight [j, h, w, n, c, m], which so are a linear layer's, and that is faster.

    By timings it is where not half as many lanes more stay idle, since nothing goes across lanes; but of a few matrix
    poses, whose rows fill fours where positions do not.
    """
    if poses.shape[1:3] != weight.shape[1:3] or padding:
        return False
    images, parents, rows = len(poses), len(weight), poses.shape[-1] // weight.shape[-2]
    beside, eights = blocks(images) * LANES * parents, 8 * -(-images // 8) * blocks(parents) * LANES
    return 2 * beside <= 3 * eights and (images >= 4 or rows == 1)


def to_lanes(x: Tensor) -> Tensor:
    """Return [b, ...] -> [blocks, ..., 16], contiguous."""
    missing = blocks(x.shape[0]) * LANES - x.shape[0]
    return F.pad(x, (0, 0) * (x.ndim - 1) + (0, missing)).unflatten(0, (-1, LANES)).movedim(1, -1).contiguous()


def from_lanes(x: Tensor, images: int) -> Tensor:
    """Return [blocks, ..., 16] -> [b, ...], contiguous."""
    return x.movedim(-1, 1).flatten(0, 1)[:images].contiguous()


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    """Return what numba's loops take for contiguous tensors."""
    return [x.detach().numpy() for x in tensors]


def rooms(like: np.ndarray, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Return memory of each of `shapes` for numbers of the type of `like`, not set, for loops to work in.

    Each begins at a cache line: a vector of float32 is one line. A loop that took its memory itself would be compiled
    for half a second longer. All are cut from one piece: where it lies takes longer to ask than a small loop to run.
    """
    line = 64 // like.dtype.itemsize
    sizes = [math.prod(shape) for shape in shapes]
    space = np.empty(sum(-(-size // line) * line for size in sizes) + line, like.dtype)
    begin, found = (-space.ctypes.data % 64) // like.dtype.itemsize, []
    for size, shape in zip(sizes, shapes, strict=True):
        found.append(space[begin : begin + size].reshape(shape))
        begin += -(-size // line) * line
    return found


@inlined
def clear(out, at, vectors):
    """Put zeros in `vectors` times 16 places of `out` from `at` on; a slice would cost its compiler seconds."""
    for k in range(at, at + vectors * LANES, LANES):
        store(out, k, zeros(out))


@subroutine
def gather(poses, first, count, out, block):
    """Compute: poses [b, i, k] of `count` children from `first` on -> out [count, blocks, k, 16]; missing images are
    0.
    """
    images, children, size = poses.shape
    parts, whole = out.shape[1], count * size // LANES * LANES
    for part in range(parts):
        full = whole if (part + 1) * LANES <= images else 0  # numbers of each image that are moved 16 at a time
        # the poses of these children are count * size numbers in a row in each image: 16 numbers of 16 images are
        # turned, so that row r of `block` is number e + r of all of them, element k of child i
        for e in range(0, full, LANES):
            transpose(poses, (part * LANES * children + first) * size + e, children * size, block, 0, LANES)
            for r in range(LANES):
                i, k = divmod(e + r, size)
                store(out, ((i * parts + part) * size + k) * LANES, load(block, r * LANES))
        for lane in range(LANES):  # what no vector holds: the last numbers, or a block that has not 16 images
            b = part * LANES + lane
            for i in range(full // size, count):
                for k in range(max(0, full - i * size), size):
                    out[i, part, k, lane] = poses[b, first + i, k] if b < images else 0


@subroutine
def scatter(lanes, first, count, out, block):
    """Compute: the way back: lanes [count, blocks, k, 16] -> `out` [b, i, k] at `first`."""
    images, children, size = out.shape
    parts, whole = lanes.shape[1], count * size // LANES * LANES
    for part in range(parts):
        full = whole if (part + 1) * LANES <= images else 0
        for e in range(0, full, LANES):  # as in `gather`, from the vectors to the images
            for r in range(LANES):
                i, k = divmod(e + r, size)
                store(block, r * LANES, load(lanes, ((i * parts + part) * size + k) * LANES))
            transpose(block, 0, LANES, out, (part * LANES * children + first) * size + e, children * size)
        for b in range(part * LANES, min((part + 1) * LANES, images)):
            for i in range(full // size, count):
                for k in range(max(0, full - i * size), size):
                    out[b, first + i, k] = lanes[i, part, k, b % LANES]


@inlined
def vote(u, at, w, to, rows, columns, m, out, into, add):
    """Compute: out [rows, m, 16] = u w, or += u w, of `u` from `at` on, `w` from `to` on, `out` from `into` on."""
    for r in range(rows):  # out[r] = u[r] w: rows of w are m apart, its columns are neighbours
        multiply(u, at + r * columns * LANES, columns, w, to, m, 1, out, into + r * m * LANES, m, add)


@subroutine
def votes_of(u, at, weight, child, rows, out, into, add):
    """Compute: all votes of one child, out [j, rows, m, 16] = or += u weight, with weight [j, i, columns, m].

    A call for every parent would take half as long as its products.
    """
    parents, children, columns, m = weight.shape
    for j in range(parents):
        to = (j * children + child) * columns * m
        vote(u, at, weight, to, rows, columns, m, out, into + j * rows * m * LANES, add)


@inlined
def dot(x, at, y, to, pose):
    """Return dot products of 16 images, of `pose` elements of x from `at` on and of y from `to` on.

    Four sums at once, since each product waits for the sum before it.
    """
    a0 = zeros(x)
    a1 = zeros(x)
    a2 = zeros(x)
    a3 = zeros(x)
    k, end = 0, pose * LANES
    while k + 4 * LANES <= end:
        a0 = a0 + load(x, at + k) * load(y, to + k)
        a1 = a1 + load(x, at + k + LANES) * load(y, to + k + LANES)
        a2 = a2 + load(x, at + k + 2 * LANES) * load(y, to + k + 2 * LANES)
        a3 = a3 + load(x, at + k + 3 * LANES) * load(y, to + k + 3 * LANES)
        k += 4 * LANES
    while k < end:
        a0 = a0 + load(x, at + k) * load(y, to + k)
        k += LANES
    return (a0 + a1) + (a2 + a3)


@subroutine
def softmax(logits, at, parents, whole):
    """Compute: softmax over `parents` of logits [parents, 16] from `at` on, in place, times the vector `whole`."""
    end = at + parents * LANES
    top = load(logits, at)  # the largest logit of each image: exp is taken of what is 0 at most
    for k in range(at + LANES, end, LANES):
        x = load(logits, k)
        top = select(x, top, x, top)
    divisor = zeros(logits)
    for k in range(at, end, LANES):
        x = exp(load(logits, k) - top)
        store(logits, k, x)
        divisor = divisor + x
    share = whole / divisor  # one division an image, and products with it
    for k in range(at, end, LANES):
        store(logits, k, load(logits, k) * share)


@subroutine
def back(v, at, w, to, rows, columns, m, out, into):
    """Compute: out [rows, columns, 16] += v w', the gradient of u: `v` [rows, m, 16] from `at` on, `out` from `into`
    on.
    """
    for r in range(rows):  # out[r] += v[r] w': the same matrix read along its columns, which are m apart
        multiply(v, at + r * m * LANES, m, w, to, 1, m, out, into + r * columns * LANES, columns, True)


@subroutine
def outer(u, at, v, parts, rows, columns, m, out, into):
    """Compute: out [columns, m] = u' v, the gradient of w, over `parts` blocks of u [parts, rows, columns, 16] and
    of v.
    """
    for c in range(columns):  # row c of the gradient: sum over blocks, rows and lanes of u[.., c] v[.., :]
        outer_row(u, at + c * LANES, columns * LANES, v, parts * rows, m, out, into + c * m)


@subroutine
def join(sums, first, pose, out, begin):
    """Compute: `pose` numbers of out from `begin` on = the sums over lanes of vectors of `sums`, the `first` and on."""
    for d in range(0, pose, 4):
        k = (first + d) * LANES
        a, b = load(sums, k), load(sums, k + LANES)
        store_totals(out, begin + d, a, b, load(sums, k + 2 * LANES), load(sums, k + 3 * LANES))
