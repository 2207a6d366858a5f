"""Routing towards discriminative quality (Yang, Li and Yu 2021): coefficients learnt by a goal of their own.

The coefficients b_ij are parameters of the layer, without a softmax: parent_j = squash(sum_i b_ij vote_ij) (Eq. 6).
They ascend the gradient of sum_k delta_jk |p_j|^2 - lambda |b| (Eq. 10 and 14), with p the sum before the squash and
delta +1 for classes that are there and -1 for others, in a phase of their own that alternates with the weights
(Algorithm 1). No matrix U U' is built: |p_j|^2 is all of it. Here the sum over the observations is a mean, so that
several processes agree with one; a step of the paper is a step of the batch size times ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchcaps.capsules import Capsules, squash, widen
from torchcaps.routing.interface import Routing, Sizes, Spec, register_routing
from torchcaps.votes import Votes


@register_routing
class Discriminative(Routing):
    """Persistent coefficients [i, j], shared by all positions of a convolutional layer.

    Args:
        sizes: of the layer.
        norm: "l2" penalises the squared length of the coefficients (Eq. 10), "l1" their absolute sum (Eq. 14; the
            derivative of |b| at 0 is 0).
        penalty_weight: lambda, at least 0; the paper says small, e.g. 0.001.
        initial: the value that every coefficient starts from. 0 is a fixed point: there nothing ever moves.
    """

    spec = Spec(
        name="discriminative",
        paper="Yang, Li and Yu 2021",
        time="b I J d d'",
        memory="b J d",
        iterative=False,
        couplings=True,
        objective=True,
    )

    def __init__(self, sizes: Sizes, norm: str = "l2", penalty_weight: float = 0.001, initial: float = 0.1):
        super().__init__(sizes)
        if norm not in ("l1", "l2"):
            raise ValueError(f"norm is {norm!r}; it must be 'l1' or 'l2'")
        if penalty_weight < 0:
            raise ValueError(f"penalty_weight is {penalty_weight}; it must be at least 0")
        if initial == 0:
            raise ValueError("initial is 0, a fixed point: coefficients that start there never move; 0.1 works")
        self.norm, self.penalty_weight = norm, penalty_weight
        self.coefficient = nn.Parameter(torch.full((sizes.children, sizes.parents), initial))  # [i, j]

    def couple(self, votes: Votes, state: Tensor | None, t: int) -> Tensor:
        return self.coefficient

    def update(self, votes: Votes, coupling: Tensor, state: Tensor | None, t: int) -> tuple[Capsules, Tensor]:
        total = votes.combine(coupling)  # [b, p, j, d], the paper's v
        return Capsules(squash(total)), total

    def coefficients(self) -> list[nn.Parameter]:
        return [self.coefficient]

    def objective(self, state: Tensor, targets: Tensor) -> Tensor:
        delta = 2 * targets - 1  # [b, j], Eq. 5b
        quality = widen(state).square().sum((1, 3))  # [b, j]
        return (delta * quality).sum(1).mean()

    def penalty(self) -> Tensor:
        size = self.coefficient.square() if self.norm == "l2" else self.coefficient.abs()
        return self.penalty_weight * size.sum()
