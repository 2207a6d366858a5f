"""The Sinkhorn divergence between two batches (Li et al. 2018, Neural Network Encapsulation, Eq. 8 to 11).

W(x, y) = <Q, P>, with Q the ground cost of each pair and P the entropic transport plan between uniform marginals, by a
given number of Sinkhorn iterations; the divergence is 2 W(x, y) - W(x, x) - W(y, y). Eq. 8 as printed has marginals of
mass B; the authors' code has 1/B, and so do we. Eq. 9 scales the columns first and then the rows, and so do we; the
authors' code begins with the rows, which is an option: after ten iterations their losses differ. Iterations stay in the
log domain and in float32: exp(-Q / eps) underflows with the l2 cost. POT's `empirical_sinkhorn_divergence` is half of
this, clipped at 0, with the gradient through the plan.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from torchcaps.capsules import no_autocast, widen
from torchcaps.names import check_choice

Cost = Literal["cosine", "l2"]
First = Literal["columns", "rows"]
SHORTEST = 1e-4  # of a feature vector that has a direction


def direction(x: Tensor) -> Tensor:
    """Return x / |x| along the last dimension. What is shorter than 1e-4 has no direction and stays as it is:
    gradients would overflow half precision there, and at zero they would be NaN.
    """
    square = x.square().sum(-1, keepdim=True)
    return x * torch.where(square > SHORTEST**2, square, 1).rsqrt()


def ground_cost(x: Tensor, y: Tensor, cost: Cost) -> Tensor:
    """Return Q [n, m], of features x [n, f] and y [m, f]: 1 - cosine in [0, 2] (1 where one has no direction), or |x -
    y|.
    """
    if cost == "cosine":
        return 1 - direction(x) @ direction(y).T
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")  # exact, with gradient 0 where x = y


def transport_plan(cost: Tensor, eps: float, iterations: int, first: First = "columns") -> Tensor:
    """Return P [n, m] after `iterations` of Eq. 9: a step each of the columns, which then sum to 1/m, and of the
    rows, to 1/n.

    `first` is which of the two begins, "columns" (Eq. 9) or "rows" (the authors' code). What comes last has its sums,
    the other about.
    """
    if first == "rows":
        return transport_plan(cost.T, eps, iterations).T
    n, m = cost.shape
    kernel = -cost / eps  # log K
    rows = torch.zeros_like(kernel[:, :1])  # [n, 1], log b
    columns = torch.zeros_like(kernel[:1])  # [1, m], log a
    for _ in range(iterations):
        columns = -math.log(m) - (kernel + rows).logsumexp(0, keepdim=True)
        rows = -math.log(n) - (kernel + columns).logsumexp(1, keepdim=True)
    return (rows + kernel + columns).exp()


def sinkhorn_divergence(
    x: Tensor,
    y: Tensor,
    cost: Cost = "cosine",
    eps: float = 0.1,
    iterations: int = 10,
    bias_fix: bool = True,
    through_plan: bool = False,
    first: First = "columns",
) -> Tensor:
    """Return 2 W(x, y) - W(x, x) - W(y, y), a scalar of float32 at least; it can be slightly negative before
    convergence.

    Args:
        x, y: samples [n, ...] and [m, ...] with equally many features each, which are flattened.
        cost: ground cost, "cosine" (the paper's choice) or "l2".
        eps: of the entropy, above 0, in units of the cost.
        iterations: at least 1.
        bias_fix: whether the two terms of x and of y alone are taken off (Eq. 11); without it this is W(x, y).
        through_plan: whether the gradient flows through the plan too; the paper gains by leaving it out.
        first: what an iteration scales first, see `transport_plan`: "columns" (Eq. 9) or "rows" (the authors' code).

    Raises:
        ValueError: for features that differ in number, empty batches, and options out of range.
    """
    _check(x, y, cost, eps, iterations, first)

    def transport(a: Tensor, b: Tensor) -> Tensor:
        costs = ground_cost(a, b, cost)
        plan = transport_plan(costs if through_plan else costs.detach(), eps, iterations, first)
        return (plan * costs).sum()

    with no_autocast(x):
        x, y = widen(x.flatten(1)), widen(y.flatten(1))
        total = transport(x, y)
        return 2 * total - transport(x, x) - transport(y, y) if bias_fix else total


def kl_divergence(generated: Tensor, true: Tensor) -> Tensor:
    """Return the KL divergence of each true sample from its generated one, features as logits of a softmax, averaged
    over the batch.

    The paper's KL row (Table 3b) names no densities, so its formula cannot be computed; this is the definition that the
    library uses: mean_b sum_f p log(p / q) with p = softmax(true_b) and q = softmax(generated_b); both [b, ...].

    Raises:
        ValueError: for shapes that differ.
    """
    if generated.shape != true.shape:
        raise ValueError(f"KL compares sample with sample: {tuple(generated.shape)} and {tuple(true.shape)} differ")
    q, p = (widen(x.flatten(1)).log_softmax(1) for x in (generated, true))
    return F.kl_div(q, p, reduction="batchmean", log_target=True)


def _check(x: Tensor, y: Tensor, cost: str, eps: float, iterations: int, first: str) -> None:
    check_choice("cost", cost, ("cosine", "l2"))
    check_choice("first", first, ("columns", "rows"))
    if eps <= 0 or iterations < 1:
        raise ValueError(f"eps is {eps} and iterations {iterations}; they must be above 0 and at least 1")
    if min(x.ndim, y.ndim) < 2 or x[:1].numel() != y[:1].numel() or 0 in (x.numel(), y.numel()):
        raise ValueError(f"samples {tuple(x.shape)} and {tuple(y.shape)} must have equally many features, at least one")
