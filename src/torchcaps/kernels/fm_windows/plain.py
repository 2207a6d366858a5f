"""The operation of FM agreement on windows in terms of the plain sums over votes: see `op` for its arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from torchcaps.capsules import Capsules
from torchcaps.votes import ConvVotes


def sums(
    poses: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    rows: int,
    stride: int,
    padding: int,
    l2: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return sum_i c x and sum_i (c x)^2, each [b, p, j, d]; inputs of one type."""
    votes = ConvVotes(Capsules(poses), weight, rows, stride, padding)
    affine = scale[None, None], shift[None, None]  # [1, 1, i | 1, j | 1, d]
    if not l2:
        return votes.combine("ones", *affine), votes.squares("ones", *affine)
    coupling = torch.rsqrt(votes.distance(*affine).clamp_min(eps))
    coupling = coupling if votes.present is None else coupling * votes.present[None, :, :, None]
    return votes.combine(coupling, *affine), votes.squares(coupling.square(), *affine)
