"""EM routing (Hinton, Sabour and Frosst 2018), Procedure 1: parents are Gaussian clusters of votes.

Everything stays in the log domain: the state carries the activation's logit, because the logarithm of a saturated
sigmoid has no gradient. Variances are centred sums: uncentred ones lose half their value in float32 where votes lie
within a thousandth of each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchcaps.capsules import Capsules, widen
from torchcaps.names import check_above, check_choice
from torchcaps.routing.interface import Routing, Sizes, Spec, Takes
from torchcaps.routing.registry import register_routing
from torchcaps.votes import Scope, Votes


class Clusters(NamedTuple):
    """State of EM: what the E step needs of the parents."""

    mean: Tensor  # [b, p, j, d]
    variance: Tensor  # [b, p, j, d]
    logit: Tensor  # [b, p, j], of the activation


def cluster(votes: Votes, weights: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and variance [b, p, j, d] of the votes by `weights` [b, p, i, j | 1], and the sum of the weights.

    The sum is [b, p, j | 1, 1]. `eps` is the least of it where it divides, and of the variance: an added eps of 1e-8 or
    less would vanish in ONNX.
    """
    total = weights.sum(2).unsqueeze(-1)
    # averaged before the product, not after it: there the gradient would overflow float16
    share = weights / total.clamp_min(eps).transpose(2, 3)
    mean = widen(votes.combine(share))
    return mean, votes.squares(share, shift=-mean).clamp_min(eps), total


def log_prior(state: Clusters) -> Tensor:
    """Return log (a_j |2 pi variance_j|^-1/2), [b, p, j]: what is added to minus half the scaled distance of a vote
    from its parent.
    """
    return F.logsigmoid(state.logit) - 0.5 * (2 * math.pi * state.variance).log().sum(-1)  # [b, p, j]


class Activation(nn.Module):
    """The logit of a parent's activation, lambda (beta_a - sum_h (beta_u + log sigma_h) sum_i R_ij a_i).

    Args:
        parents: per position; each has its own two costs, learnt from zero.
        temperature, growth: lambda of iteration t is temperature * (1 - growth^(t + 1)); growth 0 keeps it constant. A
            sequence of temperatures gives lambda of each iteration, the last of them for all that follow.
        normalise: standardise the logits over the parents of a position instead of scaling them by lambda.
    """

    def __init__(self, parents: int, temperature: float | Sequence[float], growth: float, normalise: bool):
        super().__init__()
        given = [temperature] if isinstance(temperature, (int, float)) else list(temperature)
        if not given or not all(each > 0 for each in given):
            raise ValueError(f"temperature is {temperature}; it must be above 0, or a sequence of such numbers")
        if not 0 <= growth < 1:
            raise ValueError(f"growth is {growth}; it must be in [0, 1)")
        self.temperature, self.growth, self.normalise = temperature, growth, normalise
        self.beta_u = nn.Parameter(torch.zeros(parents))
        self.beta_a = nn.Parameter(torch.zeros(parents))

    def inverse_temperature(self, t: int) -> float:
        """Return lambda of iteration `t` = 0, 1, ..., above 0."""
        if isinstance(self.temperature, (int, float)):
            return self.temperature * (1 - self.growth ** (t + 1))
        return self.temperature[min(t, len(self.temperature) - 1)]

    def forward(self, variance: Tensor, total: Tensor, t: int) -> Tensor:
        """Return the logits of the parents' activations in iteration `t`, [b, p, j], from the variance and the sum of
        weights that `cluster` gives.
        """
        cost = (self.beta_u[:, None] + 0.5 * variance.log()) * total  # [b, p, j, d]
        logit = self.beta_a - cost.sum(-1)
        return F.layer_norm(logit, logit.shape[-1:]) if self.normalise else self.inverse_temperature(t) * logit

    def extra_repr(self) -> str:
        return "normalised" if self.normalise else f"temperature={self.temperature}, growth={self.growth}"


@register_routing
class EM(Routing[Clusters | None]):
    """Gaussian clusters with learnt costs.

    M step, of the assignments R_ij times the children's activations a_i: mean and variance of the votes, cost_h =
    (beta_u + log sigma_h) sum_i R_ij a_i, activation sigmoid(lambda (beta_a - sum_h cost_h)). E step: R_ij is
    proportional to a_j N(vote_ij; mean_j, variance_j) over the parents that compete for child i. Poses are the means.

    Args:
        sizes: of the layer.
        scope: a child competes over all windows that see it ("image", the paper's) or at each position apart
            ("window").
        temperature, growth: the schedule of lambda, see `Activation`. The paper says only that it grows; the values are
            the authors' answer to a reader. A sequence of temperatures gives lambda of each iteration.
        normalise: standardise the input of the sigmoid over the parents of a position. EncapNet (Li et al. 2018,
            section A.i) finds a normalisation there crucial and does not define it. lambda then has no effect, and a
            single parent is always active by a half.
        eps: floor of variances and of sums of assignments, in squared pose units and capsules.
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
        loss="spread",
        takes=Takes(matrix=True, squashed=False),
    )

    def __init__(
        self,
        sizes: Sizes,
        scope: Scope = "image",
        temperature: float | Sequence[float] = 0.01,
        growth: float = 0.95,
        normalise: bool = False,
        eps: float = 1e-8,
    ):
        super().__init__(sizes)
        check_choice("scope", scope, ("window", "image"))
        check_above("eps", eps)
        self.scope: Scope = scope
        self.eps = eps
        self.activation = Activation(self.sizes.parents, temperature, growth, normalise)

    def couple(self, votes: Votes, state: Clusters | None, t: int) -> Tensor:
        """Take the E step: return the assignments R_ij, [b, p, i, j]; without a state they are uniform over the parents
        that compete.
        """
        if state is None:
            return self.compete(votes, None)
        scale = torch.rsqrt(2 * state.variance)
        apart = votes.distance(scale, -state.mean * scale)  # [b, p, i, j]
        return self.compete(votes, log_prior(state).unsqueeze(2) - apart)

    def compete(self, votes: Votes, logits: Tensor | None) -> Tensor:
        return votes.compete(logits, scope=self.scope)

    def update(self, votes: Votes, coupling: Tensor, state: Clusters | None, t: int) -> tuple[Capsules, Clusters]:
        """Take the M step: return the parents, and the clusters that the next E step compares votes with."""
        assert votes.activations is not None
        weights = coupling * widen(votes.activations).unsqueeze(-1)  # [b, p, i, j] or [b, p, i, 1]
        return self.parents(*cluster(votes, weights, self.eps), t)

    def parents(self, mean: Tensor, variance: Tensor, total: Tensor, t: int) -> tuple[Capsules, Clusters]:
        """Return capsules and state of iteration `t`, from what `cluster` gives: mean, variance [b, p, j, d] and sum of
        weights.
        """
        logit = self.activation(variance, total, t)  # [b, p, j]
        return Capsules(mean, logit.sigmoid()), Clusters(mean, variance, logit)
