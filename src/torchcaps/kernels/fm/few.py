"""The sums of FM agreement over the votes of a few images, without gradient. See README.md.

Importing this module imports numba.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from torchcaps.kernels.lanes import clear, join, rooms
from torchcaps.kernels.simd import LANES, broadcast, compiled, load, root, select, store, zeros


def sums_of_few(
    votes: np.ndarray, children: int, scale: Tensor, shift: Tensor, l2: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """Return sum_i c x and sum_i (c x)^2, each [b, j, d], see `op.fm_sums`.

    Args:
        votes: of `children`, [b, blocks of 16 children, j, d, 16], see `kernels.few`.
        scale, shift: of the votes, [1, j | 1, d], of their type and contiguous.
        l2, eps: see `op.fm_sums`.
    """
    images, groups, parents, pose, _ = votes.shape
    present = np.zeros((groups, LANES), votes.dtype)  # children beyond the last vote for nothing
    present.reshape(-1)[:children] = 1
    out = np.empty((2, images, parents, pose), votes.dtype)
    affine = (scale.detach().numpy(), shift.detach().numpy())
    sums = rooms(votes, (2, pose, LANES))[0]
    _sums(votes, present, *affine, l2, votes.dtype.type(eps), out[0], out[1], sums)
    found = torch.from_numpy(out)
    return found[0], found[1]


@compiled
def _sums(votes, present, scale, shift, l2, eps, out_total, out_squares, sums):
    """Compute: both sums, [b, j, d]; in `sums` each lane is over its own children."""
    images, groups, parents, pose, _ = votes.shape
    one = zeros(votes) + votes.dtype.type(1)
    for n in range(images):
        for j in range(parents):
            place = j * pose if scale.shape[1] > 1 else 0
            clear(sums, 0, 2 * pose)
            for group in range(groups):
                at = ((n * groups + group) * parents + j) * pose * LANES
                coupling = load(present, group * LANES)
                if l2:
                    square = zeros(votes)
                    for d in range(pose):
                        x = load(votes, at + d * LANES) * broadcast(scale, place + d) + broadcast(shift, place + d)
                        square = square + x * x
                    floor = zeros(votes) + eps
                    coupling = coupling * (one / root(select(floor, square, floor, square)))
                for d in range(pose):
                    x = load(votes, at + d * LANES) * broadcast(scale, place + d) + broadcast(shift, place + d)
                    x = x * coupling
                    k = d * LANES
                    store(sums, k, load(sums, k) + x)
                    k = (pose + d) * LANES
                    store(sums, k, load(sums, k) + x * x)
            join(sums, 0, pose, out_total, (n * parents + j) * pose)
            join(sums, pose, pose, out_squares, (n * parents + j) * pose)
