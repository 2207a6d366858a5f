"""The operations of FM agreement in terms of the plain sums over votes: see `op` for their arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from torchcaps.capsules import Capsules
from torchcaps.votes import LinearVotes


def sums(poses: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, l2: bool, eps: float) -> tuple[Tensor, Tensor]:
    """Return sum_i c x and sum_i (c x)^2, each [b, j, d]; inputs of one type."""
    votes = LinearVotes(Capsules(poses), weight, poses.shape[2] // weight.shape[2])
    affine = scale[None, None], shift[None, None]  # [1, 1, i | 1, j | 1, d]
    coupling = torch.rsqrt(votes.distance(*affine).clamp_min(eps)) if l2 else None
    squares = votes.squares("ones" if coupling is None else coupling.square(), *affine)
    return votes.combine("ones" if coupling is None else coupling, *affine).squeeze(1), squares.squeeze(1)


def moments(poses: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over the images of each pair's votes, both [i, j, d]; inputs of one type."""
    mean, variance, _ = LinearVotes(Capsules(poses), weight, poses.shape[2] // weight.shape[2]).moments("pair")
    return mean, variance
