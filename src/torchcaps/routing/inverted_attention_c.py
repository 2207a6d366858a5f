"""Ablation C of inverted dot-product attention routing (Tsai et al., ICLR 2020, section 5): capsules with activations.

The paper says only "the same kind of capsules activations as described in EM Routing CapsNets". Defined here: as in
EM's M step, a child counts by its activation, p_j = LayerNorm(sum_i r_ij a_i vote_ij), and a parent's activation is
that of a Gaussian cluster with weights r_ij a_i; as in EM's E step, it enters the competition, r = softmax_j(vote_ij .
p_j + log a_j).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from torchcaps.capsules import Capsules, widen
from torchcaps.names import check_above
from torchcaps.routing.em import Activation, cluster
from torchcaps.routing.interface import Sizes, Start
from torchcaps.routing.inverted_attention import Attention, InvertedAttention
from torchcaps.routing.registry import register_routing
from torchcaps.votes import Scope, Votes


class Active(NamedTuple):
    """State: the parents, and the logits of their activations."""

    poses: Tensor  # [b, p, j, d]
    logit: Tensor | None  # [b, p, j]; None before the first iteration, where all are equal


@register_routing
class InvertedAttentionC(Attention[Active | None]):
    """Inverted attention of children with activations, which gives its parents activations.

    Args:
        sizes, layer_norm, scaled, scope, start, bias: see `InvertedAttention`.
        temperature, growth, normalise: of the activation, see `EM`.
        eps: floor of variances and of sums of weights, in squared pose units and capsules.
    """

    spec = replace(
        InvertedAttention.spec,
        name="inverted-attention-c",
        paper="Tsai et al. 2020, ablation C",
        needs_activations=True,
        gives_activations=True,
        loss="cross-entropy",
    )

    def __init__(
        self,
        sizes: Sizes,
        layer_norm: bool = True,
        scaled: bool = False,
        scope: Scope = "window",
        start: Start = "zero",
        temperature: float | Sequence[float] = 0.01,
        growth: float = 0.95,
        normalise: bool = False,
        eps: float = 1e-8,
        bias: bool = False,
    ):
        super().__init__(sizes, layer_norm, scaled, scope, start, bias)
        check_above("eps", eps)
        self.eps = eps
        self.activation = Activation(self.sizes.parents, temperature, growth, normalise)

    def start(self, votes: Votes) -> Active | None:
        poses = self.first_parents()
        return None if poses is None else Active(poses, None)

    def couple(self, votes: Votes, state: Active | None, t: int) -> Tensor:
        if state is None:
            return self.compete(votes, None)
        logits = votes.agree(state.poses * self.scale)  # [b, p, i, j]
        if state.logit is not None:
            logits = logits + F.logsigmoid(state.logit).unsqueeze(2)
        return self.compete(votes, logits)

    def update(self, votes: Votes, coupling: Tensor, state: Active | None, t: int) -> tuple[Capsules, Active]:
        assert votes.activations is not None
        weights = coupling * widen(votes.activations).unsqueeze(-1)  # [b, p, i, j] or [b, p, i, 1]
        return self.parents(*cluster(votes, weights, self.eps), t)

    def parents(self, mean: Tensor, variance: Tensor, total: Tensor, t: int) -> tuple[Capsules, Active]:
        """Return capsules and state of iteration `t`, from what `cluster` gives: mean, variance [b, p, j, d] and sum of
        weights.
        """
        poses = self.norm(self.add_bias(mean * total.clamp_min(self.eps)))  # [b, p, j, d]
        logit = self.activation(variance, total, t)
        return Capsules(poses, logit.sigmoid()), Active(poses, logit)
