"""The fused step of EM routing, and of two routings whose parents are clusters as EM's are: an ablation of inverted
attention, and variational Bayes.

The activation of a parent, and a norm of its pose, are made of its results in PyTorch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchcaps.capsules import Capsules
from torchcaps.kernels.em.op import em_step
from torchcaps.kernels.rule import off_cuda, unless_wide
from torchcaps.routing import Step
from torchcaps.routing.em import EM, Clusters, log_prior
from torchcaps.routing.fused import Transform, always, register_kernel
from torchcaps.routing.inverted_attention_c import Active, InvertedAttentionC
from torchcaps.routing.variational_bayes import Posterior, VariationalBayes
from torchcaps.votes import ConvVotes, LinearVotes

Clustering = EM | InvertedAttentionC | VariationalBayes

FLOOR = 1e-24  # of sums of weights: those below 1e-30 are taken for none


def supports(transform: Transform, routing: EM | InvertedAttentionC) -> str | None:
    """Return why the kernel does not take a routing, or None: with so small a floor sums that are nearly nothing would
    be told apart from nothing.
    """
    if routing.eps < FLOOR:
        return f"the EM kernel takes eps from {FLOOR}, not {routing.eps}"
    return None


@register_kernel(LinearVotes, EM, supports, off_cuda)
@register_kernel(LinearVotes, InvertedAttentionC, supports, off_cuda)
@register_kernel(LinearVotes, VariationalBayes, always, off_cuda)
def linear_step(routing: Clustering, votes: LinearVotes, state: Any, t: int) -> Step[Any]:
    """Take the step of a linear layer, which is an image of one place that a window of one place sees."""
    poses, activations = votes.capsules
    if activations is None:
        return routing.step(votes, state, t)
    if state is None:
        activations = activations / votes.parents
    tensors = poses[:, None, None], votes.weight[:, None, None], activations[:, None, None]
    return _step(routing, tensors, _judges(routing, votes, state), t, (votes.rows, 1, 0, False))


@register_kernel(ConvVotes, EM, supports, unless_wide)
@register_kernel(ConvVotes, InvertedAttentionC, supports, unless_wide)
@register_kernel(ConvVotes, VariationalBayes, always, unless_wide)
def conv_step(routing: Clustering, votes: ConvVotes, state: Any, t: int) -> Step[Any]:
    """Take the step of a child that competes within each window, or over all that see it."""
    poses, activations = votes.capsules
    if activations is None:
        return routing.step(votes, state, t)
    whole = routing.scope == "image" and math.prod(votes.space) > 1  # one window is the image
    if state is None:
        # the first assignments of variational Bayes are even at each position, whatever competes later
        sharing = whole and not isinstance(routing, VariationalBayes)
        activations = activations / (votes.parents * (_windows_that_see(votes) if sharing else 1))
    tensors = poses, votes.weight.unflatten(1, (*votes.kernel, -1)), activations
    return _step(routing, tensors, _judges(routing, votes, state), t, (votes.rows, votes.stride, votes.padding, whole))


def _windows_that_see(votes: ConvVotes) -> Tensor:
    """Return how many there are at each place, [h, w, 1]; 1 where there is none, and nothing depends on it."""
    height, width = votes.kernel
    ones = torch.ones(1, height * width, votes.space[0] * votes.space[1], device=votes.device)
    counts = F.fold(ones, votes.image, votes.kernel, padding=votes.padding, stride=votes.stride)
    return counts[0, 0].clamp_min(1).unsqueeze(-1)


def _judges(
    routing: Clustering, votes: LinearVotes | ConvVotes, state: Clusters | Active | Posterior | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return mean, scale and prior of the parents that votes are compared with, as `em_step` takes them."""
    if state is None:
        return None, None, None
    whole = votes.capsules.poses.shape[0], votes.space[0] * votes.space[1] if votes.space else 1
    if isinstance(state, Clusters | Posterior):
        if isinstance(state, Clusters):
            found = state.mean, torch.rsqrt(2 * state.variance), log_prior(state)
        else:
            assert isinstance(routing, VariationalBayes)
            found = state.mean, *routing.densities(state)
        mean, scale, prior = (each.expand(*whole, *each.shape[2:]) for each in found)
        return mean, scale, prior
    assert isinstance(routing, InvertedAttentionC)
    query = (state.poses * routing.scale).expand(*whole, -1, -1)
    return query, None, torch.zeros_like(query[..., 0]) if state.logit is None else F.logsigmoid(state.logit)


def _step(
    routing: Clustering,
    tensors: tuple[Tensor, Tensor, Tensor],
    judges: tuple[Tensor | None, Tensor | None, Tensor | None],
    t: int,
    geometry: tuple[int, int, int, bool],
) -> Step[Any]:
    """Return the step of poses, weight and activations as `em_step` takes them, the last of which are shares in a
    first iteration.
    """
    eps = FLOOR if isinstance(routing, VariationalBayes) else routing.eps
    mean, variance, total, _ = em_step(*tensors, *judges, *geometry, isinstance(routing, InvertedAttentionC), eps)
    total = total.unsqueeze(-1)
    if isinstance(routing, VariationalBayes):
        return Step(*_posterior(routing, mean, variance, total, t))
    capsules, state = routing.parents(mean, variance.clamp_min(eps), total, t)
    return Step(capsules, None, state)


def _posterior(
    routing: VariationalBayes, mean: Tensor, variance: Tensor, total: Tensor, t: int
) -> tuple[Capsules, None, Posterior]:
    """Return what variational Bayes makes of the same moments, see README.md."""
    weight = total.clamp_min(FLOOR)  # what the step has divided by: times it all are sums again
    shrunk = weight / (1 + total) * mean
    scale = 1 + weight * variance + shrunk * mean
    capsules, found = routing.posterior(shrunk, scale, total.squeeze(-1), t)
    return capsules, None, found
