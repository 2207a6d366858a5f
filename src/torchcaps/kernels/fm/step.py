"""The fused step of FM agreement, on linear capsules and on windows."""

from __future__ import annotations

import torch
from torch import Tensor

from torchcaps.capsules import Capsules
from torchcaps.kernels.fm.op import fm_moments, fm_sums, fm_sums_of_few, sums_of_few
from torchcaps.kernels.fm_windows.op import fm_window_sums
from torchcaps.kernels.rule import LANES, few_fit, unless_wide
from torchcaps.routing import Step
from torchcaps.routing.fm import FM, Affine
from torchcaps.routing.fused import Transform, compiling, register_kernel, register_whole
from torchcaps.votes import ConvVotes, LinearVotes, Votes
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


@register_kernel(ConvVotes, FM, supports, unless_wide)
def fm_on_windows(routing: FM, votes: ConvVotes, state: Affine | None, t: int) -> Step[Affine | None]:
    """Take the step: the two sums over children are one operation; batch norm's statistics are the plain ones."""
    weight = votes.weight.unflatten(1, (*votes.kernel, -1))
    affine = _shaped(votes, None if routing.norm is None else routing.norm(votes))
    geometry = votes.rows, votes.stride, votes.padding
    total, squares = fm_window_sums(votes.capsules.poses, weight, *affine, *geometry, routing.l2, routing.eps)
    return Step(routing.parents(votes, total, squares), None, None)


def supports_few(transform: Transform, routing: FM) -> str | None:
    """Refuse what the loop over a few images has no lanes for."""
    if not few_fit(transform):
        return f"the loop over a few images takes vectors of {LANES} elements or a multiple"
    if routing.norm is not None and routing.norm.each != "element":
        return "the loop over a few images takes batch norm of each element, whose statistics all children share"
    return supports(transform, routing)


@register_whole(LinearVotes, FM, supports_few, compiled=True)
def fm_of_few(routing: FM, votes: LinearVotes, iterations: int) -> Step[Affine | None]:
    """Return its one iteration."""
    scale, shift = (x.to(votes.weight.dtype) for x in _affine(routing, votes))
    sums = fm_sums_of_few if compiling() else sums_of_few
    found = sums(votes.capsules.poses, votes.weight, scale, shift, routing.l2, routing.eps)
    total, squares = (x.unsqueeze(1) for x in found)
    poses, activations = routing.parents(votes, total, squares)
    return Step(Capsules(poses.squeeze(1), None if activations is None else activations.squeeze(1)), None, None)


def _affine(routing: FM, votes: LinearVotes) -> tuple[Tensor, Tensor]:
    """Scale and shift of the votes, both [i | 1, j | 1, d]."""

    def moments(each: Each) -> Moments:
        mean, variance = fm_moments(votes.capsules.poses, votes.weight)
        return pool_moments(mean, variance, torch.full_like(mean[:, 0, 0], len(votes.capsules.poses)), each)

    return _shaped(votes, None if routing.norm is None else routing.norm.affine(moments, votes.images))


def _shaped(votes: Votes, affine: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Scale and shift as batch norm gives them, both [i | 1, j | 1, d]; 1 and 0 where there is none."""
    if affine is None:
        one = torch.ones(1, 1, votes.pose, device=votes.device)
        return one, torch.zeros_like(one)
    scale, shift = affine
    shape = scale.shape[-3:-1] if scale.ndim == 5 else (1, 1)
    return scale.reshape(*shape, votes.pose), shift.reshape(*shape, votes.pose)
