"""The fused step of EM routing; the activation of a parent is made of its results, in PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from torchcaps.kernels.em.op import em_step
from torchcaps.kernels.registry import register_kernel
from torchcaps.routing import State, Step
from torchcaps.routing.em import EM, Clusters, log_prior
from torchcaps.votes import ConvVotes, LinearVotes

if TYPE_CHECKING:
    from torchcaps.layers.transforms import Transform

FLOOR = 1e-24  # of sums of weights: those below 1e-30 are taken for none


def supports(transform: Transform, routing: EM) -> str | None:
    """Sums that are nearly nothing would be told apart from nothing."""
    if routing.eps < FLOOR:
        return f"the EM kernel takes eps from {FLOOR}, not {routing.eps}"
    return None


@register_kernel(LinearVotes, EM, supports)
def linear_step(routing: EM, votes: LinearVotes, state: State, t: int) -> Step:
    """A linear layer is an image of one place that a window of one place sees."""
    poses, activations = votes.capsules
    if activations is None or votes.device.type == "cuda":
        return routing.step(votes, state, t)
    if state is None:
        activations = activations / votes.parents
    tensors = poses[:, None, None], votes.weight[:, None, None], activations[:, None, None]
    return _step(routing, tensors, state, t, (votes.rows, 1, 0, False))


@register_kernel(ConvVotes, EM, supports)
def conv_step(routing: EM, votes: ConvVotes, state: State, t: int) -> Step:
    """A child competes within each window, or over all that see it."""
    poses, activations = votes.capsules
    if activations is None or votes.device.type == "cuda":
        return routing.step(votes, state, t)
    whole = routing.scope == "image"
    if state is None:
        activations = activations / (votes.parents * (_windows_that_see(votes) if whole else 1))
    tensors = poses, votes.weight.unflatten(1, (*votes.kernel, -1)), activations
    return _step(routing, tensors, state, t, (votes.rows, votes.stride, votes.padding, whole))


def _windows_that_see(votes: ConvVotes) -> Tensor:
    """How many there are at each place, [h, w, 1]; 1 where there is none, and nothing depends on it."""
    height, width = votes.kernel
    ones = torch.ones(1, height * width, votes.space[0] * votes.space[1], device=votes.device)
    counts = F.fold(ones, votes.image, votes.kernel, padding=votes.padding, stride=votes.stride)
    return counts[0, 0].clamp_min(1).unsqueeze(-1)


def _step(
    routing: EM,
    tensors: tuple[Tensor, Tensor, Tensor],
    state: Clusters | None,
    t: int,
    geometry: tuple[int, int, int, bool],
) -> Step:
    """Of poses, weight and activations as `em_step` takes them, the last of which are shares in a first iteration."""
    parents = (None, None, None) if state is None else (state.mean, 0.5 / state.variance, log_prior(state))
    mean, spread, total, _ = em_step(*tensors, *parents, *geometry, routing.eps)
    capsules, clusters = routing.parents(mean, spread.clamp_min(routing.eps), total.unsqueeze(-1), t)
    return Step(capsules, None, clusters)
