"""The two sums of FM agreement as an operation of torch, forward and backward. See README.md for the formulas.

Sums are in float32 at least whatever the inputs are, so autocast leaves them as they are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from torchcaps.kernels.fm import plain
from torchcaps.kernels.homes import as_promised, call_at, home_in, none_yet
from torchcaps.kernels.twice import asked_again, gradients_anew

_home = home_in("fm")


@torch.library.custom_op("torchcaps::fm_sums", mutates_args=(), device_types=("cpu", "cuda"))
def fm_sums(poses: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, l2: bool, eps: float) -> tuple[Tensor, Tensor]:
    """Return sum_i c x and sum_i (c x)^2, each [b, j, d], of x = scale v + shift and votes v = u W that are never made.

    Args:
        poses: children [b, i, rows * columns], any of the floating types, as the three that follow.
        weight: [j, i, columns, m]; a vote has d = rows * m elements.
        scale, shift: of the votes, both [i | 1, j | 1, d].
        l2: whether c = 1 / |x|; else 1.
        eps: floor of |x|^2.

    Returns:
        In the widest type of the inputs, float32 at least.
    """
    if not len(poses):
        return _result(poses, weight, scale, shift, l2, eps)
    inputs = _widest(poses, weight, scale, shift)
    total, squares = call_at(poses, _home(poses).forward, *inputs, l2, eps)
    return total.contiguous(), squares.contiguous()


@torch.library.custom_op("torchcaps::fm_sums_backward", mutates_args=(), device_types=("cpu", "cuda"))
def fm_sums_backward(
    of_total: Tensor,
    of_squares: Tensor,
    poses: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    l2: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return gradients for poses, weight, scale and shift, in their types; votes are computed anew."""
    inputs = poses, weight, scale, shift
    if not len(poses):
        return none_yet(*inputs)
    found = call_at(poses, _home(poses).backward, *_widest(of_total, of_squares, *inputs), l2, eps)
    outs = [as_promised(out, x) for out, x in zip(found, inputs, strict=True)]
    return outs[0], outs[1], outs[2], outs[3]


@torch.library.custom_op("torchcaps::fm_moments", mutates_args=(), device_types=("cpu", "cuda"))
def fm_moments(poses: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over the images of each pair's votes, both [i, j, d], in float32 at least."""
    if not len(poses):
        mean, variance = _moments(poses, weight)
        return mean.zero_(), variance.zero_()
    mean, variance = call_at(poses, _home(poses).moments, *_widest(poses, weight))
    return mean.contiguous(), variance.contiguous()


@torch.library.custom_op("torchcaps::fm_moments_backward", mutates_args=(), device_types=("cpu", "cuda"))
def fm_moments_backward(of_mean: Tensor, of_variance: Tensor, poses: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradients for poses and weight, in their types."""
    if not len(poses):
        return none_yet(poses, weight)
    inputs = _widest(of_mean, of_variance, poses, weight)
    d_poses, d_weight = call_at(poses, _home(poses).moments_backward, *inputs)
    return as_promised(d_poses, poses), as_promised(d_weight, weight)


def _widest(*tensors: Tensor) -> list[Tensor]:
    """Return all of them contiguous, and in the widest of their types, float32 at least."""
    dtype = torch.float32
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype)
    return [x.to(dtype).contiguous() for x in tensors]


@fm_sums.register_fake
def _result(poses: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, l2: bool, eps: float) -> tuple[Tensor, Tensor]:
    (wide, *_) = _widest(*(x.new_empty(0) for x in (poses, weight, scale, shift)))
    pose = poses.shape[2] // weight.shape[2] * weight.shape[3]
    out = wide.new_empty(poses.shape[0], weight.shape[0], pose)
    return out, torch.empty_like(out)


@fm_sums_backward.register_fake
def _(
    of_total: Tensor,
    of_squares: Tensor,
    poses: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    l2: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outs = [x.new_empty(x.shape) for x in (poses, weight, scale, shift)]
    return outs[0], outs[1], outs[2], outs[3]


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.flags = inputs[4:]


def _differentiate(ctx: Any, of_total: Tensor, of_squares: Tensor) -> tuple:
    saved = ctx.saved_tensors  # once: a checkpoint gives them no second time
    if asked_again():
        return tuple(gradients_anew(_plain_sums, (*saved, *ctx.flags), (of_total, of_squares)))
    return *fm_sums_backward(of_total, of_squares, *saved, *ctx.flags), None, None


def _plain_sums(*inputs: Any) -> tuple[Tensor, Tensor]:
    poses, weight, scale, shift = _widest(*inputs[:4])
    return plain.sums(poses, weight, scale, shift, *inputs[4:])


fm_sums.register_autograd(_differentiate, setup_context=_keep)


@fm_moments.register_fake
def _moments(poses: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    (wide, *_) = _widest(poses.new_empty(0), weight.new_empty(0))
    pose = poses.shape[2] // weight.shape[2] * weight.shape[3]
    out = wide.new_empty(weight.shape[1], weight.shape[0], pose)
    return out, torch.empty_like(out)


@fm_moments_backward.register_fake
def _(of_mean: Tensor, of_variance: Tensor, poses: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return poses.new_empty(poses.shape), weight.new_empty(weight.shape)


def _keep_inputs(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_moments(ctx: Any, of_mean: Tensor, of_variance: Tensor) -> tuple:
    saved = ctx.saved_tensors  # once: a checkpoint gives them no second time
    if asked_again():
        return tuple(gradients_anew(_plain_moments, saved, (of_mean, of_variance)))
    return fm_moments_backward(of_mean, of_variance, *saved)


def _plain_moments(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    poses, weight = _widest(*inputs)
    return plain.moments(poses, weight)


fm_moments.register_autograd(_differentiate_moments, setup_context=_keep_inputs)


@register_flop_formula(torch.ops.torchcaps.fm_sums)
def _(poses: Any, weight: Any, scale: Any, shift: Any, l2: bool, *_: Any, **__: Any) -> int:
    """Return FLOPs: products with W for both sums, and with l2 for the lengths."""
    return (3 if l2 else 2) * _products(poses, weight)


@register_flop_formula(torch.ops.torchcaps.fm_sums_backward)
def _(
    of_total: Any, of_squares: Any, poses: Any, weight: Any, scale: Any, shift: Any, l2: bool, *_: Any, **__: Any
) -> int:
    """Return FLOPs: two products for each of forward's; once more those of squares, of lengths and, where each child
    has its scale, of the sum.
    """
    return ((8 if l2 else 5) + (scale[0] > 1)) * _products(poses, weight)


@register_flop_formula(torch.ops.torchcaps.fm_moments)
def _(poses: Any, weight: Any, *_: Any, **__: Any) -> int:
    """Return FLOPs: a Gram matrix of each child's rows, and its products with W from both sides."""
    return 2 * poses[0] * poses[1] * poses[2] * weight[2] + _summaries(poses, weight)


@register_flop_formula(torch.ops.torchcaps.fm_moments_backward)
def _(of_mean: Any, of_variance: Any, poses: Any, weight: Any, *_: Any, **__: Any) -> int:
    """Return FLOPs: two products for each of forward's, and all but the last once more."""
    return 6 * poses[0] * poses[1] * poses[2] * weight[2] + _summaries(poses, weight, 3, 2)


def _summaries(poses: Any, weight: Any, times: int = 1, last: int = 1) -> int:
    """Return FLOPs of what goes through W in place of the images, for each row of each child: a mean and a Gram
    matrix, which goes from both sides, `last` from the second.
    """
    return 2 * (poses[2] // weight[2]) * (times * (1 + weight[2]) + last) * math.prod(weight)


def _products(poses: Any, weight: Any) -> int:
    """Return FLOPs of making all votes once."""
    return 2 * poses[0] * poses[2] * weight[0] * weight[1] * weight[3]


@torch.library.custom_op("torchcaps::fm_sums_of_few", mutates_args=(), device_types="cpu")
def fm_sums_of_few(
    poses: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, l2: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """Return what `fm_sums` does, of a few images and without gradient, for graphs of `torch.compile`.

    Poses [b, i, c] of at least one image, weight [j, i, c, d], scale and shift [1, j | 1, d], all of one type, float32
    or float64.
    """
    total, squares = sums_of_few(poses, weight, scale, shift, l2, eps)
    return total, squares.clone()  # they lie in one memory, which outputs of an operation may not


@fm_sums_of_few.register_fake
def _(poses: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, l2: bool, eps: float) -> tuple[Tensor, Tensor]:
    return _result(poses, weight, scale, shift, l2, eps)


def sums_of_few(
    poses: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, l2: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the same, outside of a graph, where calling an operation would take as long as a small layer."""
    from torchcaps.kernels.few import votes_of_few
    from torchcaps.kernels.fm import few

    votes = votes_of_few(poses.contiguous(), weight.contiguous())
    return few.sums_of_few(votes, poses.shape[1], scale.contiguous(), shift.contiguous(), l2, eps)


@register_flop_formula(torch.ops.torchcaps.fm_sums_of_few)
def _(poses: Any, weight: Any, *_: Any, **__: Any) -> int:
    """Return FLOPs: the votes once."""
    return _products(poses, weight)
