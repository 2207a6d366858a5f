"""Capsules, the value that flows between layers, and the pure functions on poses."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor


class Capsules(NamedTuple):
    """Poses and, where the algorithm has them, activations.

    A matrix pose is its rows, flattened. `space` is empty or (height, width).
    """

    poses: Tensor  # [b, *space, i, d]
    activations: Tensor | None = None  # [b, *space, i], in [0, 1]; of FM agreement a logit


def transformed() -> bool:
    """Return whether a transform of `torch.func`, or forward mode, is at work: these see into torch's own operations
    alone.
    """
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def autocast_type(device: torch.device) -> torch.dtype | None:
    """Return the type that autocast has products in on `device`; None where it is off."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else None


def widen(x: Tensor) -> Tensor:
    """Return `x` in a precision fit for sums of squares: float32 at least (half precision overflows at |pose| =
    256).
    """
    if x.dtype in (torch.float32, torch.float64):  # asking torch takes as long as a small sum
        return x
    return x.to(torch.promote_types(x.dtype, torch.float32))


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which operations on the device of `x` keep the types that they are given; the meta device has
    no autocast.
    """
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)


def saturate(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `x` in `dtype`; what is too large for it becomes its largest number instead of an infinity."""
    limit = torch.finfo(dtype).max
    return x.clamp(-limit, limit).to(dtype)


def squash(poses: Tensor, eps: float = 1e-24, dim: int = -1) -> Tensor:
    """Shrink each pose to a length below one and keep its direction (Sabour et al. 2017, Eq. 1).

    squash(s) = |s|^2 / (1 + |s|^2) * s / sqrt(max(|s|^2, eps)). The eps stands inside the root, so that the gradient at
    a zero capsule is zero instead of NaN; it is no summand, because the ONNX exporter drops summands up to 1e-8.
    Computed in float32 at least, returned in the type of `poses`, whose elements stand along `dim`.
    """
    wide = widen(poses)
    square = wide.square().sum(dim, keepdim=True)  # one element along `dim`
    return (wide * (square / (1 + square) * torch.rsqrt(square.clamp_min(eps)))).to(poses.dtype)


def squash_exponential(poses: Tensor, eps: float = 1e-24) -> Tensor:
    """Shrink each pose to a length below one and keep its direction (Mazzia et al. 2021): (1 - exp(-|s|)) s / |s|.

    The gradient at a zero capsule is 1, its limit, where the released code has NaN. Computed and returned as `squash`.
    """
    wide = widen(poses)
    length = wide.square().sum(-1, keepdim=True).clamp_min(eps).sqrt()
    return (wide * (-torch.expm1(-length) / length)).to(poses.dtype)


def lengths(poses: Tensor, eps: float = 1e-24) -> Tensor:
    """Return the Euclidean length of each pose, [..., d] -> [...], in float32 at least; its gradient at zero is 0."""
    return torch.sqrt(widen(poses).square().sum(-1).clamp_min(eps))


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


def sign(x: Tensor, threshold: Tensor | None = None) -> Tensor:
    """Return 1 where `x` lies above the threshold, a constant that broadcasts to it (0 where None), and -1 elsewhere.

    The sign of 0 is -1: what comes out of a ReLU is about half exact zeros, which must not look like the positive half.
    The gradient is 1 where |x - threshold| <= 1 and 0 elsewhere (straight through).
    """
    x = x if threshold is None else x - threshold.detach()
    if not transformed():
        return _Sign.apply(x)  # pyright: ignore[reportReturnType]
    through = x.clamp(-1, 1)
    return torch.where(x > 0, 1.0, -1.0).to(x.dtype) + (through - through.detach())


def binarize(x: Tensor, dim: int = -1, threshold: Tensor | None = None) -> Tensor:
    """Return `sign` of x times the mean of |x| along `dim`: an xnorized vector, in the shape and type of `x`.

    No gradient flows through the scale (Sun et al., XnODR and XnIDR, Table 2 and 3).
    """
    return sign(x, threshold) * x.abs().mean(dim, keepdim=True).detach()


def midpoint(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Return (min + max) / 2 over `dims`, which stay with size 1: where min-max normalisation crosses a half.

    The threshold of Sun et al., appendix A (Eq. 16 and 17, with the raw comparison).
    """
    return x.amin(tuple(dims), keepdim=True) / 2 + x.amax(tuple(dims), keepdim=True) / 2  # halves: sums may overflow
