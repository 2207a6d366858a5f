"""Capsules, the value that flows between layers, and the pure functions on poses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Capsules(NamedTuple):
    """Poses and, where the algorithm has them, activations.

    A matrix pose is its rows, flattened. `space` is empty or (height, width).
    """

    poses: Tensor  # [b, *space, i, d]
    activations: Tensor | None = None  # [b, *space, i], in [0, 1]


def widen(x: Tensor) -> Tensor:
    """`x` in a precision fit for sums of squares: float32 at least (half precision overflows at |pose| = 256)."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def squash(poses: Tensor, eps: float = 1e-24) -> Tensor:
    """Shrink each pose to a length below one and keep its direction (Sabour et al. 2017, Eq. 1).

    squash(s) = |s|^2 / (1 + |s|^2) * s / sqrt(|s|^2 + eps). The eps stands inside the root, so that the gradient at a
    zero capsule is zero instead of NaN. Computed in float32 at least, returned in the type of `poses` [..., d].
    """
    wide = widen(poses)
    square = wide.square().sum(-1, keepdim=True)  # [..., 1]
    return (wide * (square / (1 + square) * torch.rsqrt(square + eps))).to(poses.dtype)


def lengths(poses: Tensor, eps: float = 1e-24) -> Tensor:
    """Euclidean length of each pose: [..., d] -> [...], in float32 at least; its gradient at zero is zero."""
    return torch.sqrt(widen(poses).square().sum(-1) + eps)


class _Sign(torch.autograd.Function):
    """Sign with the straight-through gradient; 0 maps to -1."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x)
        return torch.where(x > 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


def binarize(x: Tensor) -> Tensor:
    """sign(x) times the mean of |x| over the last dimension: an xnorized vector, [..., d] -> [..., d].

    The sign of 0 is -1: what comes out of a ReLU is about half exact zeros, which must not look like the positive half.
    Its gradient is 1 where |x| <= 1 and 0 elsewhere (straight through), and none flows through the scale
    (Sun et al., XnODR and XnIDR, Table 2 and 3).
    """
    return _Sign.apply(x) * x.abs().mean(-1, keepdim=True).detach()  # pyright: ignore[reportOptionalOperand]
