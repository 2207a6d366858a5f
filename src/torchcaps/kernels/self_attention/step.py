"""The fused step of `SelfAttention`: dynamic routing's, whose state is the sum of all votes; see README.md."""

from __future__ import annotations

from torch import Tensor

from torchcaps.capsules import Capsules
from torchcaps.kernels.dynamic.op import dynamic_step
from torchcaps.kernels.inverted_attention.op import attend
from torchcaps.kernels.rule import unless_wide
from torchcaps.routing import Step
from torchcaps.routing.fused import always, register_kernel
from torchcaps.routing.self_attention import SelfAttention
from torchcaps.votes import ConvVotes, LinearVotes


@register_kernel(LinearVotes, SelfAttention, always, unless_wide)
def linear_step(routing: SelfAttention, votes: LinearVotes, state: None, t: int) -> Step[None]:
    """Return the one step; of few images the plain one, where votes are smaller than the weights."""
    if 2 * len(votes.capsules.poses) * votes.rows <= votes.weight.shape[2]:
        return routing.step(votes, state, t)
    query = routing.query(votes).to(votes.dtype).squeeze(1)  # [b, j, d]
    total = dynamic_step(votes.capsules.poses, votes.weight, query, None, False, False, False).unsqueeze(1)
    return Step(_narrow(routing, votes, total), None, None)


@register_kernel(ConvVotes, SelfAttention, always, unless_wide)
def conv_step(routing: SelfAttention, votes: ConvVotes, state: None, t: int) -> Step[None]:
    """Return the one step on windows."""
    weight = votes.weight.unflatten(1, (*votes.kernel, -1))
    query = routing.query(votes).to(votes.dtype)
    total = attend(votes.capsules.poses, weight, query, votes.rows, votes.stride, votes.padding)
    return Step(_narrow(routing, votes, total), None, None)


def _narrow(routing: SelfAttention, votes: LinearVotes | ConvVotes, total: Tensor) -> Capsules:
    parents = routing.parents(votes, total)
    return parents._replace(poses=parents.poses.to(votes.dtype))
