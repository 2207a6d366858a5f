"""The two sums of FM agreement on windows as an operation of torch, forward and backward. See README.md.

Sums are in float32 at least whatever the inputs are, so autocast leaves them as they are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from torchcaps.kernels.fm_windows.plain import sums
from torchcaps.kernels.homes import as_promised, call_at, home_in, none_yet
from torchcaps.kernels.places import count_places
from torchcaps.kernels.twice import asked_again, gradients_anew
from torchcaps.kernels.types import widest

_home = home_in("fm_windows")


@torch.library.custom_op("torchcaps::fm_window_sums", mutates_args=(), device_types=("cpu", "cuda"))
def fm_window_sums(
    poses: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    rows: int,
    stride: int,
    padding: int,
    l2: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return sum_i c x and sum_i (c x)^2, each [b, p, j, d], of x = scale v + shift and votes v = u W that are never
    made.

    Args:
        poses: children [b, h, w, n, rows * columns], any of the floating types, as the three that follow.
        weight: [j, kernel height, kernel width, n, columns, m]; a vote has d = rows * m elements.
        scale, shift: of the votes, both [i | 1, j | 1, d]; i counts the children of a window, kernel places first.
        rows: of a pose.
        stride, padding: of the windows; children outside the image do not vote.
        l2: whether c = 1 / |x|; else 1.
        eps: floor of |x|^2.

    Returns:
        In the widest type of the inputs, float32 at least; p counts the positions of the windows.
    """
    if not len(poses):
        return _result(poses, weight, scale, shift, rows, stride, padding, l2, eps)
    inputs = _widest(poses, weight, scale, shift)
    total, squares = call_at(poses, _home(poses).forward, *inputs, rows, stride, padding, l2, eps)
    return total.contiguous(), squares.contiguous()


@torch.library.custom_op("torchcaps::fm_window_sums_backward", mutates_args=(), device_types=("cpu", "cuda"))
def fm_window_sums_backward(
    of_total: Tensor,
    of_squares: Tensor,
    poses: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    rows: int,
    stride: int,
    padding: int,
    l2: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return gradients for poses, weight, scale and shift, in their types; votes are computed anew."""
    inputs = poses, weight, scale, shift
    if not len(poses):
        return none_yet(*inputs)
    wide = _widest(of_total, of_squares, *inputs)
    found = call_at(poses, _home(poses).backward, *wide, rows, stride, padding, l2, eps)
    outs = [as_promised(out, x) for out, x in zip(found, inputs, strict=True)]
    return outs[0], outs[1], outs[2], outs[3]


def _widest(*tensors: Tensor) -> list[Tensor]:
    """Return all of them contiguous, and in the widest of their types, float32 at least."""
    dtype = widest(*tensors, at_least=torch.float32)
    return [x.to(dtype).contiguous() for x in tensors]


@fm_window_sums.register_fake
def _result(
    poses: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    rows: int,
    stride: int,
    padding: int,
    l2: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    dtype = widest(poses, weight, scale, shift, at_least=torch.float32)
    shape = (
        poses.shape[0],
        count_places(poses.shape, weight.shape, stride, padding),
        weight.shape[0],
        rows * weight.shape[5],
    )
    out = poses.new_empty(shape, dtype=dtype)
    return out, torch.empty_like(out)


@fm_window_sums_backward.register_fake
def _(
    of_total: Tensor,
    of_squares: Tensor,
    poses: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    rows: int,
    stride: int,
    padding: int,
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
        return tuple(gradients_anew(_plain, (*saved, *ctx.flags), (of_total, of_squares)))
    return *fm_window_sums_backward(of_total, of_squares, *saved, *ctx.flags), None, None, None, None, None


def _plain(*inputs: Any) -> tuple[Tensor, Tensor]:
    poses, weight, scale, shift = _widest(*inputs[:4])
    return sums(poses, weight, scale, shift, *inputs[4:])


fm_window_sums.register_autograd(_differentiate, setup_context=_keep)


@register_flop_formula(torch.ops.torchcaps.fm_window_sums)
def _(
    poses: Any,
    weight: Any,
    scale: Any,
    shift: Any,
    rows: int,
    stride: int,
    padding: int,
    l2: bool,
    *_: Any,
    **__: Any,
) -> int:
    """Return FLOPs: products with W for both sums, and with l2 for the lengths."""
    return (3 if l2 else 2) * _products(poses, weight, rows, stride, padding)


@register_flop_formula(torch.ops.torchcaps.fm_window_sums_backward)
def _(
    of_total: Any,
    of_squares: Any,
    poses: Any,
    weight: Any,
    scale: Any,
    shift: Any,
    rows: int,
    stride: int,
    padding: int,
    l2: bool,
    *_: Any,
    **__: Any,
) -> int:
    """Return FLOPs: two products for each of forward's; once more those of squares, of lengths and, where each child
    has its scale, of the sum.
    """
    return ((8 if l2 else 5) + (scale[0] > 1)) * _products(poses, weight, rows, stride, padding)


def _products(poses: Any, weight: Any, rows: int, stride: int, padding: int) -> int:
    """Return FLOPs of making all votes once."""
    return 2 * poses[0] * count_places(poses, weight, stride, padding) * rows * math.prod(weight)
