"""The fused step of FM agreement on linear capsules."""

from __future__ import annotations

import torch
from torch import Tensor

from torchcaps.kernels.fm.op import fm_moments, fm_sums
from torchcaps.kernels.rule import unless_wide
from torchcaps.routing import Step
from torchcaps.routing.fm import FM, Affine
from torchcaps.routing.fused import Transform, register_kernel
from torchcaps.votes import LinearVotes
from torchcaps.votes.affine import pool_moments
from torchcaps.votes.protocol import Each, Moments

FLOOR = 1e-24  # of squared lengths: lanes without an image are zeros, whose 1 / length must be a number


def supports(transform: Transform, routing: FM) -> str | None:
    """Refuse a floor that float32 cannot divide by, which would spoil what stands beside the last image."""
    if routing.l2 and routing.eps < FLOOR:
        return f"the FM kernel takes eps from {FLOOR}, not {routing.eps}"
    return None


@register_kernel(LinearVotes, FM, supports, unless_wide)
def fm(routing: FM, votes: LinearVotes, state: Affine | None, t: int) -> Step[Affine | None]:
    """Take the step: the two sums over children are one operation, and batch norm's statistics another."""
    total, squares = fm_sums(votes.capsules.poses, votes.weight, *_affine(routing, votes), routing.l2, routing.eps)
    return Step(routing.parents(votes, total.unsqueeze(1), squares.unsqueeze(1)), None, None)


def _affine(routing: FM, votes: LinearVotes) -> tuple[Tensor, Tensor]:
    """Scale and shift of the votes, both [i | 1, j | 1, d]."""
    if routing.norm is None:
        one = torch.ones(1, 1, votes.pose, device=votes.device)
        return one, torch.zeros_like(one)

    def moments(each: Each) -> Moments:
        mean, variance = fm_moments(votes.capsules.poses, votes.weight)
        return pool_moments(mean, variance, torch.full_like(mean[:, 0, 0], len(votes.capsules.poses)), each)

    scale, shift = routing.norm.affine(moments, votes.images)
    shape = scale.shape[-3:-1] if scale.ndim == 5 else (1, 1)
    return scale.reshape(*shape, votes.pose), shift.reshape(*shape, votes.pose)
