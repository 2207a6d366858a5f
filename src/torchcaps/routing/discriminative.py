"""Routing towards discriminative quality (Yang, Li and Yu 2021): coefficients learnt by a goal of their own.

The coefficients b_ij are parameters of the layer, without a softmax: parent_j = squash(sum_i b_ij vote_ij) (Eq. 6).
They ascend the gradient of sum_k delta_jk |p_j|^2 - lambda |b| (Eq. 10 and 14), with p the sum before the squash and
delta +1 for classes that are there and -1 for others, in a phase of their own that alternates with the weights
(Algorithm 1). No matrix U U' is built: |p_j|^2 is all of it. Here the whole of it is divided by the number of
observations, the sum and lambda alike, so that several processes agree with one; a step of the paper is one of the
batch size times its length here.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from torchcaps.capsules import Capsules, squash, widen
from torchcaps.names import check_above, check_choice
from torchcaps.routing.interface import Routing, Sizes, Spec
from torchcaps.routing.registry import register_routing
from torchcaps.votes import Votes


@register_routing
class Discriminative(Routing[Tensor | None]):
    """Persistent coefficients [i, j], shared by all positions of a convolutional layer.

    Args:
        sizes: of the layer.
        norm: "l2" penalises the squared length of the coefficients (Eq. 10), "l1" their absolute sum (Eq. 14), "rows"
            the sum of the lengths of each child's coefficients, which drops whole children (ours). The derivative of
            |b| at 0 is 0.
        penalty_weight: lambda of Eq. 10 and 14, at least 0, beside the sum over the batch; the paper says small, e.g.
            0.001.
        proximal: leave the penalty to `shrink`, the proximal step of "l1" or "rows", which makes exact zeros; the
            paper's subgradient makes none.
        initial: the value that every coefficient starts from. 0 is a fixed point: there nothing ever moves.
        fixed: leave the coefficients there: a linear capsule layer, the control that the claim must beat.
        absent_weight: -delta of a class that is not there, at least 0. By the paper's 1 such classes outweigh the one
            that is there by their number, so that too large a step drives whole classes to zero; 1 / (J - 1) balances
            them (ours).
        bias: add a learnt one to each parent before the squash, see `Routing.add_bias`; it is part of p, and the
            training loss learns it.
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

    def __init__(
        self,
        sizes: Sizes,
        norm: str = "l2",
        penalty_weight: float = 0.001,
        initial: float = 0.1,
        proximal: bool = False,
        fixed: bool = False,
        absent_weight: float = 1.0,
        bias: bool = False,
    ):
        super().__init__(sizes)
        self.keep_bias(bias)
        check_choice("norm", norm, ("l1", "l2", "rows"))
        check_above("penalty_weight", penalty_weight, equal=True)
        check_above("absent_weight", absent_weight, equal=True)
        if not math.isfinite(initial):
            raise ValueError(f"initial is {initial}; it must be a finite number, such as 0.1")
        if initial == 0:
            raise ValueError("initial is 0, a fixed point: coefficients that start there never move; 0.1 works")
        if proximal and norm == "l2":
            raise ValueError("norm is 'l2', which is smooth and needs no proximal step; 'l1' and 'rows' have one")
        self.norm, self.penalty_weight, self.proximal = norm, penalty_weight, proximal
        self.initial_value, self.fixed, self.absent_weight = float(initial), fixed, absent_weight
        start = torch.full((self.sizes.children, self.sizes.parents), self.initial_value)
        self.coefficient: Tensor  # [i, j]
        if fixed:
            self.register_buffer("coefficient", start)
        else:
            self.coefficient = nn.Parameter(start)

    def couple(self, votes: Votes, state: Tensor | None, t: int) -> Tensor:
        return self.coefficient

    def compete(self, votes: Votes, logits: Tensor | None) -> Tensor:
        """Return shares by `logits` [b, p, i, j], times what a child gives in all, the sum of its coefficients: here
        nobody competes.
        """
        return votes.compete(logits) * self.coefficient.sum(1, keepdim=True)

    def update(self, votes: Votes, coupling: Tensor, state: Tensor | None, t: int) -> tuple[Capsules, Tensor]:
        total = self.add_bias(votes.combine(coupling))  # [b, p, j, d], the paper's v
        return Capsules(squash(total)), total

    def coefficients(self) -> list[nn.Parameter]:
        return [self.coefficient] if isinstance(self.coefficient, nn.Parameter) else []

    def objective(self, state: Tensor | None, targets: Tensor) -> Tensor:
        """Return the mean over the batch of sum_j delta_j |p_j|^2, a scalar; its `penalty` is apart."""
        assert state is not None, "an objective is of sums that an iteration has made"
        delta = targets - self.absent_weight * (1 - targets)  # [b, j], Eq. 5b
        quality = widen(state).square().sum((1, 3))  # [b, j]
        return (delta * quality).sum(1).mean()

    def penalty(self) -> Tensor:
        """Return lambda |b|, a scalar, as it stands beside the sum over the batch (Eq. 12 and 14)."""
        if self.proximal:
            return self.coefficient.new_zeros(())
        match self.norm:
            case "l1":
                size = self.coefficient.abs().sum()
            case "rows":
                size = torch.linalg.vector_norm(self.coefficient, dim=1).sum()
            case _:
                size = self.coefficient.square().sum()
        return self.penalty_weight * size

    @torch.no_grad()
    def shrink(self, lr: float, batch: int) -> None:
        """Take the proximal step that belongs to a gradient step: soft threshold at lr * lambda / batch.

        Every coefficient ("l1"), or every child's row ("rows"), comes nearer to 0 by that much and stops there.

        Args:
            lr: rate of the gradient step, which is of the mean over the batch.
            batch: observations that this mean is of, over all processes.
        """
        assert self.proximal, "without `proximal` the penalty is in the gradient already"
        b = self.coefficient
        size = b.abs() if self.norm == "l1" else torch.linalg.vector_norm(b, dim=1, keepdim=True)
        threshold = lr * self.penalty_weight / batch
        b.mul_((1 - threshold / size.clamp_min(torch.finfo(b.dtype).tiny)).clamp_min(0))

    def after_step(self, lr: float, batch: int) -> None:
        """Shrink the coefficients where they are `proximal`."""
        if self.proximal:
            self.shrink(lr, batch)

    def constant_coupling(self) -> Tensor:
        """Return the coefficients [i, j]."""
        return self.coefficient

    def extra_repr(self) -> str:
        initial = f"initial={self.initial_value}"
        return ", ".join(filter(None, (super().extra_repr(), initial if self.initial_value != 0.1 else "")))

    def select(self, children: Tensor | slice, parents: Tensor | slice, sizes: Sizes) -> Discriminative:
        """Return a copy that has the coefficients and biases of some children and parents."""
        chosen = copy.deepcopy(self)
        coefficient = self.coefficient.detach()[children][:, parents].clone()
        chosen.sizes = sizes
        chosen.coefficient = coefficient if self.fixed else nn.Parameter(coefficient, self.coefficient.requires_grad)
        if self.bias is not None:
            chosen.bias = nn.Parameter(self.bias.detach()[parents].clone(), self.bias.requires_grad)
        return chosen

    @torch.no_grad()
    def collapsed(self, share: float = 0.1) -> list[int]:
        """Return the parents j whose coefficients have all but vanished.

        Of these sqrt(sum_i b_ij^2) is below `share` of what it started from, or of the largest parent's.

        The gradient of b_j is proportional to b_j, so that the size of b_j decays exponentially where parent j is
        longer on images of others than on its own, and takes the class with it faster than the weights can follow.
        """
        size = torch.linalg.vector_norm(self.coefficient, dim=0)  # [j]
        start = abs(self.initial_value) * len(self.coefficient) ** 0.5
        return (size < share * size.max().clamp_min(start)).nonzero().flatten().tolist()
