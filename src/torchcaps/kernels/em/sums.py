"""What the loops sum, and what is made of it on every device. See README.md; all of it is as large as the parents."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LEAST = 1e-30  # of a sum of weights that divides: what is below moves no mean


class Result(NamedTuple):
    """Of a step, as its backward pass takes it: m, G, V [b, p, j, d] and H [b, p, j, 1] of README.md."""

    mean: Tensor
    of_mean: Tensor
    of_square: Tensor
    of_weight: Tensor


def joined(centre: Tensor, square: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return means, squares about them and weights of all runs of children, which come first, from those of each.

    The squares of a run are about its own mean: what that is off the joint one is added, so nothing cancels (Chan,
    Golub and LeVeque 1979).
    """
    if len(total) == 1:
        return centre[0], square[0], total[0]
    whole = total.sum(0)
    middle = (total / torch.where(whole > LEAST, whole, 1.0) * centre).sum(0)
    return middle, (square + total * (centre - middle).square()).sum(0), whole


def moments(centre: Tensor, square: Tensor, total: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, variance and sum of weights, of means [b, p, j, d], squares about them, and `total` [b, p, j, 1]."""
    least = total.clamp_min(eps)  # D
    mean = centre * (total / least)  # the plain form divides by D, not T: where T < eps its mean is that much smaller
    return mean, (square + total * (centre - mean).square()) / least, total.squeeze(-1)  # and S about that mean


def of_votes(
    d_mean: Tensor, d_variance: Tensor, d_total: Tensor, mean: Tensor, variance: Tensor, total: Tensor, eps: float
) -> Result:
    """Return what the gradients of votes and weights are made of, of the gradients of `moments` and of what it gave."""
    total = total.unsqueeze(-1)
    least = total.clamp_min(eps)
    of_mean = d_mean - 2 * d_variance * (mean * (1 - total / least))  # mostly 0, however large the gradient is
    moved = torch.where(total >= eps, -d_variance * variance, of_mean * mean).sum(-1, keepdim=True)
    found = mean, of_mean / least, d_variance / least, d_total.unsqueeze(-1) + moved / least
    return Result(*(each.contiguous() for each in found))


def of_parents(sums: list[Tensor], scale: Tensor | None) -> list[Tensor]:
    """Return gradients of the parents that votes were compared with: mean, scale where there is one, and prior.

    Of the sums of l s e, l s e^2 and l, with s the scale, l the gradient of a logit and e = v - mean. Without a scale
    they are those of l v and l, which are the gradients; in a first iteration there are none.
    """
    if scale is None:
        return sums
    first, second, d_prior = sums
    return [2 * scale * first, -2 * second, d_prior]
