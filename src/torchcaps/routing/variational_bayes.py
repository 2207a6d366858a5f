"""Variational Bayes routing (Ribeiro, Leontidis and Kollias, AAAI 2020): EM with a posterior for each parameter.

Weights of the mixture have a Dirichlet posterior, means and precisions a Gauss-Wishart one, here with a diagonal scale.
It has EM's shape: means and squares of votes, a distance, a softmax over all parents that see a child. All stays in the
log domain; the released code takes exponentials of densities, and its users report NaN.

As in the released code the first assignments are 1 / J at each position, the later ones are shared over all windows
that see a child, and batch norm without gain and bias stands behind both outputs: it takes out the costs beta_a and
beta_u, which therefore learn nothing (they are kept, since published counts have them).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchcaps.capsules import Capsules, widen
from torchcaps.names import check_choice, whole
from torchcaps.routing.interface import Routing, Sizes, Spec, Takes
from torchcaps.routing.registry import register_routing
from torchcaps.votes import Scope, Votes
from torchcaps.votes.normalised import asking_for_eval
from torchcaps.votes.tiles import recompute


class Posterior(NamedTuple):
    """State: what the assignments need of the parents."""

    mean: Tensor  # m, [b, p, j, d]
    scale: Tensor  # P, the inverse scale of the precision, [b, p, j, d]
    total: Tensor  # R_j, the sum of assignments, [b, p, j]
    log_precision: Tensor  # E ln |Lambda_j|, [b, p, j]


def digamma(x: Tensor) -> Tensor:
    """Return the derivative of log gamma, of x > 0; in exports by `digamma_series`, since ONNX has none."""
    return digamma_series(x) if torch.compiler.is_exporting() else torch.digamma(x)


def digamma_series(x: Tensor) -> Tensor:
    """Return `digamma` to within 1e-11: six steps up, then its asymptotic series."""
    below = sum(1 / (x + n) for n in range(6))
    y = x + 6
    z = 1 / y.square()
    series = z * (1 / 12 - z * (1 / 120 - z * (1 / 252 - z * (1 / 240 - z * (1 / 132 - z * 691 / 32760)))))
    return y.log() - 0.5 / y - series - below


class Standardise(nn.BatchNorm1d):
    """Batch norm without gain and bias, by type of capsule: over images, positions and elements of a pose.

    Args:
        types: j.
        momentum: of the running statistics.
    """

    def __init__(self, types: int, momentum: float = 0.1):
        super().__init__(types, momentum=momentum, affine=False)

    def forward(self, input: Tensor) -> Tensor:
        """Return [b, p, j, d] in the same shape and type; one number of a type is 0."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        count = input.shape[0] * input.shape[1] * input.shape[3]
        if self.training and count:  # no images have no statistics, and change nothing
            mean, variance = input.mean((0, 1, 3)), input.var((0, 1, 3), correction=0)
            with torch.no_grad(), asking_for_eval():
                unbiased = variance * (count / max(count - 1, 1))
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        else:
            mean, variance = (each.to(input.dtype) for each in (self.running_mean, self.running_var))
        scale = torch.rsqrt(variance + self.eps)  # nothing but `input` is held for backward
        return input * scale[:, None] - (mean * scale)[:, None]


@register_routing
class VariationalBayes(Routing[Posterior | None]):
    """Posteriors of a Gaussian mixture, one component a parent; priors alpha 1, m 0, kappa 1, Psi 1, nu d + 1.

    With R_ij times the children's activations, and R_j their sum: mean mu of the votes, kappa_j = 1 + R_j, m_j = R_j
    mu_j / kappa_j, P_j = 1 + sum_i R_ij (vote - mu)^2 + R_j / kappa_j mu^2. Assignments: R_ij proportional to
    exp(E ln pi_j + E ln N(vote_ij)). Poses are the standardised m; activations the sigmoid of the standardised
    beta_a - beta_u - exp(E ln pi_j) H_j, with H_j the expected entropy of the component.

    Args:
        sizes: of the layer.
        scope: a child competes over all windows that see it ("image", the released code's) or at each position apart.
        rounds: iterations whose running statistics are kept apart, at least 1; further ones share the last.
    """

    spec = Spec(
        name="variational-bayes",
        paper="Ribeiro et al. 2020",
        time="R b I J d d'",
        memory="R b I J",
        iterative=True,
        couplings=True,
        needs_activations=True,
        gives_activations=True,
        loss="normalised-cross-entropy",
        takes=Takes(matrix=True, squashed=False),
    )

    def __init__(self, sizes: Sizes, scope: Scope = "image", rounds: int = 3):
        super().__init__(sizes)
        check_choice("scope", scope, ("window", "image"))
        rounds = whole("rounds", rounds)
        self.scope: Scope = scope
        self.beta_a = nn.Parameter(torch.zeros(self.sizes.parents))
        self.beta_u = nn.Parameter(torch.zeros(self.sizes.parents))
        self.pose_norms = nn.ModuleList(Standardise(self.sizes.parents) for _ in range(rounds))
        self.active_norms = nn.ModuleList(Standardise(self.sizes.parents) for _ in range(rounds))

    def couple(self, votes: Votes, state: Posterior | None, t: int) -> Tensor:
        if state is None:
            return votes.compete(None)
        scale, known = self.densities(state)
        apart = votes.distance(scale, -state.mean * scale)  # [b, p, i, j], nu / 2 (vote - m)^2 / P
        return self.compete(votes, known.unsqueeze(2) - apart)

    def densities(self, state: Posterior) -> tuple[Tensor, Tensor]:
        """Return what makes the logits, known - sum_d (scale (vote - m))^2: scale [b, p, j, d] and known [b, p, j]."""
        scale = (0.5 * self.freedom(state.total).unsqueeze(-1) / state.scale).sqrt()
        d = self.sizes.pose
        precision = state.log_precision - d * math.log(2 * math.pi) - d / (1 + state.total)
        return scale, expected_log_share(state) + 0.5 * precision

    def compete(self, votes: Votes, logits: Tensor | None) -> Tensor:
        return votes.compete(logits, scope=self.scope)

    def update(self, votes: Votes, coupling: Tensor, state: Posterior | None, t: int) -> tuple[Capsules, Posterior]:
        assert votes.activations is not None
        weights = coupling * widen(votes.activations).unsqueeze(-1)  # [b, p, i, j] or [b, p, i, 1]
        total = weights.sum(2)  # R_j, [b, p, j], or of the first iteration [b, p, 1], the same for all
        kappa = 1 + total.unsqueeze(-1)
        share = weights / kappa.transpose(2, 3)  # its sum is R / kappa: so votes are averaged to m at once
        mean = widen(votes.combine(share))
        # sum R (v - mu)^2 + R / kappa mu^2 = sum R (v - m)^2 + m^2
        scale = 1 + kappa * votes.squares(share, shift=-mean) + mean.square()
        return self.posterior(mean, scale, total.expand(-1, -1, votes.parents), t)

    def posterior(self, mean: Tensor, scale: Tensor, total: Tensor, t: int) -> tuple[Capsules, Posterior]:
        """Return the capsules of iteration `t`, and the posterior of m, P [b, p, j, d] and R [b, p, j]."""
        found = Posterior(mean, scale, total, recompute(expected_log_precision, scale, self.freedom(total)))
        return self.parents(found, t), found

    def freedom(self, total: Tensor) -> Tensor:
        """Return nu_j, the degrees of freedom of the Wishart posterior, [b, p, j]."""
        return self.sizes.pose + 1 + total

    def parents(self, state: Posterior, t: int) -> Capsules:
        """Return the capsules that the posterior of iteration `t` makes: standardised means, activations in (0, 1)."""
        d = self.sizes.pose
        entropy = 0.5 * (d * math.log(2 * math.pi * math.e) - state.log_precision)
        cost = expected_log_share(state).exp() * entropy  # [b, p, j]
        logit = self.beta_a - self.beta_u - cost
        t = min(t, len(self.pose_norms) - 1)
        poses, logit = self.pose_norms[t](state.mean), self.active_norms[t](logit.unsqueeze(-1)).squeeze(-1)
        return Capsules(poses, logit.sigmoid())


def expected_log_share(state: Posterior) -> Tensor:
    """Return E ln pi_j of the Dirichlet posterior over the types at a position, [b, p, j]."""
    alpha = 1 + state.total
    return digamma(alpha) - digamma(alpha.sum(-1, keepdim=True))


def expected_log_precision(scale: Tensor, nu: Tensor) -> Tensor:
    """Return E ln |Lambda_j| of the Wishart posterior of `scale` P [b, p, j, d] and `nu` [b, p, j]: [b, p, j]."""
    d = scale.shape[-1]
    steps = torch.arange(d, device=nu.device, dtype=nu.dtype)
    return digamma((nu.unsqueeze(-1) - steps) / 2).sum(-1) + d * math.log(2) - scale.log().sum(-1)
