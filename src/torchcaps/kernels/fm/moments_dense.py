"""Mean and variance of every pair's votes over the images on CUDA, by tensors of Gram matrices. See README.md."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(poses: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """See `op.fm_moments`."""
    centre, _, gram = _summary(poses, weight)
    mean = torch.einsum("irc,jicm->ijrm", centre, weight)
    half = torch.einsum("irce,jiem->ijrcm", gram, weight)
    variance = torch.einsum("ijrcm,jicm->ijrm", half, weight)
    return mean.flatten(2), variance.flatten(2)


def backward(of_mean: Tensor, of_variance: Tensor, poses: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradients for poses and weight."""
    centre, centred, gram = _summary(poses, weight)
    g, h = (x.unflatten(-1, (-1, weight.shape[3])) for x in (of_mean, of_variance))  # [i, j, r, m]
    half = torch.einsum("irce,jiem->ijrcm", gram, weight)
    d_weight = torch.einsum("irc,ijrm->jicm", centre, g) + 2 * torch.einsum("ijrcm,ijrm->jicm", half, h)
    weighed = torch.einsum("ijrm,jiem->ijrem", h, weight)
    d_gram = torch.einsum("ijrem,jicm->irce", weighed, weight)
    d_poses = torch.einsum("ijrm,jicm->irc", g, weight) + 2 * torch.einsum("irce,bire->birc", d_gram, centred)
    return d_poses.flatten(2) / poses.shape[0], d_weight


def _summary(poses: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean poses [i, r, c], centred ones [b, i, r, c], and the Gram matrix of each row of each child [i, r,
    c, c].
    """
    rows = poses.unflatten(-1, (-1, weight.shape[2]))
    centre = rows.mean(0)
    centred = rows - centre
    return centre, centred, torch.einsum("birc,bire->irce", centred, centred) / poses.shape[0]
