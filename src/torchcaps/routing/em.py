"""EM routing (Hinton, Sabour and Frosst 2018), Procedure 1: parents are Gaussian clusters of votes.

Everything stays in the log domain: the state carries the activation's logit, because the logarithm of a saturated
sigmoid has no gradient. Variances are centred sums: uncentred ones lose half their value in float32 where votes lie
within a thousandth of each other.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchcaps.capsules import Capsules, widen
from torchcaps.routing.interface import Routing, Sizes, Spec, register_routing
from torchcaps.votes import Scope, Votes


class Clusters(NamedTuple):
    """State of EM: what the E step needs of the parents."""

    mean: Tensor  # [b, p, j, d]
    variance: Tensor  # [b, p, j, d]
    logit: Tensor  # [b, p, j], of the activation


@register_routing
class EM(Routing):
    """Gaussian clusters with learnt costs.

    M step, of the assignments R_ij times the children's activations a_i: mean and variance of the votes, cost_h =
    (beta_u + log sigma_h) sum_i R_ij a_i, activation sigmoid(lambda (beta_a - sum_h cost_h)). E step: R_ij is
    proportional to a_j N(vote_ij; mean_j, variance_j) over the parents that compete for child i. Poses are the means.

    Args:
        sizes: of the layer.
        scope: a child competes over all windows that see it ("image", the paper's) or at each position apart
            ("window").
        temperature: lambda of iteration t is temperature * (1 - 0.95^(t + 1)), which grows as the paper asks; its
            value is the authors' answer to a reader, not in the paper.
        eps: floor that is added to variances and to sums of assignments, in squared pose units and capsules.
    """

    spec = Spec(
        name="em",
        paper="Hinton et al. 2018",
        time="R b I J d d'",
        memory="R b I J",
        iterative=True,
        couplings=True,
        needs_activations=True,
        gives_activations=True,
    )

    def __init__(self, sizes: Sizes, scope: Scope = "image", temperature: float = 0.01, eps: float = 1e-8):
        super().__init__(sizes)
        if scope not in ("window", "image"):
            raise ValueError(f"scope is {scope!r}; it must be 'window' or 'image'")
        self.scope: Scope = scope
        self.temperature, self.eps = temperature, eps
        self.beta_u = nn.Parameter(torch.zeros(sizes.parents))
        self.beta_a = nn.Parameter(torch.zeros(sizes.parents))

    def couple(self, votes: Votes, state: Clusters | None, t: int) -> Tensor:
        """E step."""
        if state is None:
            return votes.compete(None, scope=self.scope)
        scale = torch.rsqrt(2 * state.variance)
        apart = votes.distance(scale, -state.mean * scale)  # [b, p, i, j]
        volume = 0.5 * (2 * math.pi * state.variance).log().sum(-1)  # [b, p, j]
        prior = F.logsigmoid(state.logit) - volume
        return votes.compete(prior.unsqueeze(2) - apart, scope=self.scope)

    def update(self, votes: Votes, coupling: Tensor, state: Clusters | None, t: int) -> tuple[Capsules, Clusters]:
        """M step."""
        assert votes.activations is not None
        weights = coupling * widen(votes.activations).unsqueeze(-1)  # [b, p, i, j] or [b, p, i, 1]
        total = weights.sum(2).unsqueeze(-1)  # [b, p, j or 1, 1]
        mean = widen(votes.combine(weights)) / (total + self.eps)
        variance = votes.spread(weights, shift=-mean) / (total + self.eps) + self.eps
        cost = (self.beta_u[:, None] + 0.5 * variance.log()) * total  # [b, p, j, d]
        inverse_temperature = self.temperature * (1 - 0.95 ** (t + 1))
        logit = inverse_temperature * (self.beta_a - cost.sum(-1))  # [b, p, j]
        return Capsules(mean, logit.sigmoid()), Clusters(mean, variance, logit)
