"""Routings as public code writes them: votes are a tensor [b, p, i, j, d], and every iteration makes more of its size.

They are what the library is measured against, and `tests/test_naive.py` holds them equal to it. As public code does,
they leave out what reaches nothing: the first agreement, with parents of zeros, and what follows the last parents.
Letters as there: b batch, p position, i child in the window, j parent, d pose.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from torchcaps.capsules import binarize, sign, squash, squash_exponential


def linear_votes(poses: Tensor, weight: Tensor, rows: int = 1) -> Tensor:
    """Poses [b, i, rows * c] and weight [j, i, c, m] -> votes [b, 1, i, j, rows * m]."""
    return torch.einsum("birc,jicm->bijrm", poses.unflatten(-1, (rows, -1)), weight).flatten(-2).unsqueeze(1)


def conv_votes(poses: Tensor, weight: Tensor, rows: int, stride: int) -> Tensor:
    """Poses [b, h, w, i, rows * c] and weight [j, kh, kw, i, c, m] -> votes [b, p, (kh kw i), j, rows * m]."""
    windows = conv_windows(poses, weight.shape[1], stride).unflatten(-1, (rows, -1))  # [b, p, (kh kw i), r, c]
    return torch.einsum("bpirc,jicm->bpijrm", windows, weight.flatten(1, 3)).flatten(-2)


def conv_windows(x: Tensor, kernel: int, stride: int) -> Tensor:
    """[b, h, w, i, ...] -> [b, p, (kh kw i), ...]."""
    windows = x.unfold(1, kernel, stride).unfold(2, kernel, stride)  # [b, y, x, i, ..., kh, kw]
    return windows.movedim((-2, -1), (3, 4)).flatten(3, 5).flatten(1, 2)


def dynamic(votes: Tensor, iterations: int) -> Tensor:
    """Sabour et al. 2017; parents [b, p, j, d]."""
    logits = torch.zeros_like(votes[..., 0])  # [b, p, i, j]
    parents = votes.new_zeros(())
    for t in range(iterations):
        parents = squash(torch.einsum("bpij,bpijd->bpjd", logits.softmax(-1), votes))
        if t + 1 < iterations:
            logits = logits + torch.einsum("bpijd,bpjd->bpij", votes, parents)
    return parents


def xnorized(poses: Tensor, weight: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Sun et al. 2023, Table 2: what XnODR makes votes of; each row of a pose and each column of W has one scale."""
    return binarize(poses.unflatten(-1, (rows, -1))).flatten(-2), binarize(weight, -2)


def signs(poses: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of both, apart from their scales, where a vote that is nothing must be exactly 0 (section 3.3.3)."""
    return sign(poses), sign(weight)


def scales(poses: Tensor, weight: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Of a pose's rows [..., rows] and of the columns of W [..., 1, m]; they take no gradient."""
    return poses.detach().unflatten(-1, (rows, -1)).abs().mean(-1), weight.detach().abs().mean(-2, keepdim=True)


def xnidr(votes: Tensor, iterations: int) -> Tensor:
    """Sun et al. 2023, Table 3; parents [b, p, j, d]."""
    logits = torch.zeros_like(votes[..., 0])  # [b, p, i, j]
    parents = votes.new_zeros(())
    for t in range(iterations):
        parents = squash(torch.einsum("bpij,bpijd->bpjd", logits.softmax(-1), votes))
        if t + 1 < iterations:
            logits = logits + torch.einsum("bpijd,bpjd->bpij", binarize(votes), binarize(parents))
    return parents


def discriminative(votes: Tensor, coefficient: Tensor) -> Tensor:
    """Yang, Li and Yu 2021, Eq. 6; coefficients [i, j], parents [b, p, j, d]."""
    return squash(torch.einsum("ij,bpijd->bpjd", coefficient, votes))


def em(
    votes: Tensor, activations: Tensor, beta_u: Tensor, beta_a: Tensor, iterations: int, temperature: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Hinton et al. 2018, competition at one position; activations [b, p, i]; means [b, p, j, d], activations."""
    coupling = torch.full_like(votes[..., 0], 1 / votes.shape[3])  # [b, p, i, j]
    mean = logit = votes.new_zeros(())
    for t in range(iterations):
        mean, squares, variance, total = cluster(votes, coupling * activations.unsqueeze(-1))
        logit = activation(variance, total, beta_u, beta_a, temperature * (1 - 0.95 ** (t + 1)))
        if t + 1 < iterations:
            density = -(squares / (2 * variance.unsqueeze(2))).sum(-1)  # [b, p, i, j]
            volume = 0.5 * (2 * math.pi * variance).log().sum(-1)
            coupling = (density + (F.logsigmoid(logit) - volume).unsqueeze(2)).softmax(-1)
    return mean, logit.sigmoid()


def cluster(votes: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """EM's M step with weights [b, p, i, j]: mean, squared distances from it, variance, and sum of weights."""
    eps = 1e-8
    total = share.sum(2).unsqueeze(-1)  # [b, p, j, 1]
    mean = (share.unsqueeze(-1) * votes).sum(2) / total.clamp_min(eps)
    squares = (votes - mean.unsqueeze(2)).square()  # [b, p, i, j, d]
    variance = ((share.unsqueeze(-1) * squares).sum(2) / total.clamp_min(eps)).clamp_min(eps)
    return mean, squares, variance, total


def activation(variance: Tensor, total: Tensor, beta_u: Tensor, beta_a: Tensor, scale: float) -> Tensor:
    """Its logit [b, p, j]."""
    return scale * (beta_a - ((beta_u.unsqueeze(-1) + 0.5 * variance.log()) * total).sum(-1))


def inverted_attention(votes: Tensor, gain: Tensor, bias: Tensor, iterations: int, scale: float = 1.0) -> Tensor:
    """Tsai et al. 2020, competition at one position; parents [b, p, j, d]. With parents of zeros all shares are even.

    `scale` multiplies the agreement: 1 in Eq. 2, 1 / sqrt(d) in the authors' code.
    """
    parents = attend(votes, None, gain, bias, scale)
    for _ in range(iterations - 1):
        parents = attend(votes, parents, gain, bias, scale)
    return parents


def attend(votes: Tensor, parents: Tensor | None, gain: Tensor, bias: Tensor, scale: float = 1.0) -> Tensor:
    """One iteration of it; without parents to agree with, all shares are even. Parents [b, p, j, d]."""
    j, d = votes.shape[-2:]
    if parents is None:
        total = votes.sum(2) / j
    else:
        agreement = scale * torch.einsum("bpijd,bpjd->bpij", votes, parents)
        total = torch.einsum("bpij,bpijd->bpjd", agreement.softmax(-1), votes)
    return F.layer_norm(total, (d,), gain, bias)


def inverted_attention_c(
    votes: Tensor,
    activations: Tensor,
    norm: tuple[Tensor, Tensor],
    betas: tuple[Tensor, Tensor],
    iterations: int,
    temperature: float = 0.01,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Its ablation C: children [b, p, i] count by their activations, parents compete by theirs; parents, activations.

    `norm` is gain and bias, `betas` are beta_u and beta_a of `em`; `scale` as in `inverted_attention`.
    """
    d = votes.shape[-1]
    coupling = torch.full_like(votes[..., 0], 1 / votes.shape[3])  # [b, p, i, j]
    parents = logit = votes.new_zeros(())
    for t in range(iterations):
        if t > 0:
            agreement = scale * torch.einsum("bpijd,bpjd->bpij", votes, parents)
            coupling = (agreement + F.logsigmoid(logit).unsqueeze(2)).softmax(-1)
        mean, _, variance, total = cluster(votes, coupling * activations.unsqueeze(-1))
        parents = F.layer_norm(mean * total, (d,), *norm)
        logit = activation(variance, total, *betas, temperature * (1 - 0.95 ** (t + 1)))
    return parents, logit.sigmoid()


def fm(votes: Tensor, gain: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Zhao et al. 2020, Algorithms 1 and 2, batch norm of each element; s [b, p, j, d] and its sum [b, p, j]."""
    normal = F.batch_norm(votes.flatten(0, -2), None, None, gain, bias, training=True).view_as(votes)
    unit = normal * normal.square().sum(-1, keepdim=True).clamp_min(1e-12).rsqrt()
    s = (unit.sum(2).square() - unit.square().sum(2)) / (2 * votes.shape[2])
    return s, s.sum(-1)


def self_attention(votes: Tensor, prior: Tensor) -> Tensor:
    """Mazzia et al. 2021; prior [i, j], parents [b, p, j, d].

    The released code makes a matrix of all pairs of votes and sums its rows; here they are summed at once.
    """
    query = votes.sum(2) / votes.shape[-1] ** 0.5
    coupling = torch.einsum("bpijd,bpjd->bpij", votes, query).softmax(-1) + prior
    return squash_exponential(torch.einsum("bpij,bpijd->bpjd", coupling, votes))


def self_routing(votes: Tensor, activations: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Hahn et al. 2019; a vote's last element is its logit, offset [i, j]; poses [b, p, j, d - 1], activations."""
    coupling = (votes[..., -1] + offset).softmax(-1) * activations.unsqueeze(-1)  # [b, p, i, j]
    total = coupling.sum(2)
    poses = torch.einsum("bpij,bpijd->bpjd", coupling, votes[..., :-1]) / total.clamp_min(1e-8).unsqueeze(-1)
    return poses, total / activations.sum(2).clamp_min(1e-8).unsqueeze(-1)


def variational_bayes(
    votes: Tensor, activations: Tensor, beta_a: Tensor, beta_u: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """Ribeiro et al. 2020 with diagonal precisions, competition at one position; poses [b, p, j, d], activations."""
    d = votes.shape[-1]
    coupling = torch.full_like(votes[..., 0], 1 / votes.shape[3])  # [b, p, i, j]
    mean = scale = kappa = freedom = precision = share = votes.new_zeros(())
    for t in range(iterations):
        if t:
            away = ((votes - mean.unsqueeze(2)).square() / scale.unsqueeze(2)).sum(-1)  # [b, p, i, j]
            known = share + 0.5 * (precision - d * math.log(2 * math.pi) - d / kappa)
            coupling = (known.unsqueeze(2) - 0.5 * freedom.unsqueeze(2) * away).softmax(-1)
        weights = coupling * activations.unsqueeze(-1)
        total = weights.sum(2)  # [b, p, j]
        kappa, freedom = 1 + total, d + 1 + total
        centre = torch.einsum("bpij,bpijd->bpjd", weights, votes) / total.clamp_min(1e-12).unsqueeze(-1)
        spread = torch.einsum("bpij,bpijd->bpjd", weights, (votes - centre.unsqueeze(2)).square())
        pull = (total / kappa).unsqueeze(-1)
        mean, scale = pull * centre, 1 + spread + pull * centre.square()
        halves = (freedom.unsqueeze(-1) - torch.arange(d, dtype=votes.dtype, device=votes.device)) / 2
        precision = torch.digamma(halves).sum(-1) + d * math.log(2) - scale.log().sum(-1)
        share = torch.digamma(1 + total) - torch.digamma((1 + total).sum(-1, keepdim=True))
    entropy = 0.5 * (d * math.log(2 * math.pi * math.e) - precision)
    logit = standardise((beta_a - beta_u - share.exp() * entropy).unsqueeze(-1))
    return standardise(mean), logit.squeeze(-1).sigmoid()


def standardise(x: Tensor) -> Tensor:
    """Batch norm of [b, p, j, d] by type of capsule, without gain and bias; of one number alone 0."""
    variance, mean = torch.var_mean(x, (0, 1, 3), correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-5)
