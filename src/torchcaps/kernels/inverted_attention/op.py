"""One step of inverted attention as an operation of torch, forward and backward. See README.md for the formulas.

Under autocast inputs are taken as they are and sums are in float32: a narrower type would save nothing here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from torchcaps.kernels.homes import as_promised, call_at, home_in, none_yet
from torchcaps.kernels.inverted_attention.plain import plain
from torchcaps.kernels.places import count_places
from torchcaps.kernels.twice import asked_again, gradients_anew
from torchcaps.kernels.types import widest

_home = home_in("inverted_attention")


@torch.library.custom_op("torchcaps::attend", mutates_args=(), device_types=("cpu", "cuda"))
def attend(
    poses: Tensor,
    weight: Tensor,
    query: Tensor,
    rows: int,
    stride: int,
    padding: int,
    xnor: bool = False,
    binary: bool = False,
) -> Tensor:
    """Return sum_i softmax_j(v_ij . q_j) v_ij of votes v_ij = u_i W_ij that are never made, [b, p, j, rows * m].

    Args:
        poses: children [b, h, w, n, rows * c], any of the floating types, as the two that follow.
        weight: [j, kernel height, kernel width, n, c, m].
        query: what votes are compared with, [b, p, j, rows * m]; p counts the positions of the windows.
        rows: of a pose.
        stride, padding: of the windows; children outside the image do not vote.
        xnor: whether votes agree as signs times their mean size (XnIDR).
        binary: whether the elements of a row of `poses`, and those of a column of `weight`, differ in their signs alone
            (XnODR): then sums that cancel are 0, and not what rounding leaves of them.

    Returns:
        In the widest type of the inputs.

    Raises:
        ValueError: for shapes that are not these.
    """
    _check(poses, weight, query, rows, stride, padding)
    if not len(poses):
        return _result(poses, weight, query, rows, stride, padding, xnor, binary)
    total = call_at(poses, _home(poses).forward, poses, weight, query, rows, stride, padding, xnor, binary)
    return total.to(widest(poses, weight, query)).contiguous()


@torch.library.custom_op("torchcaps::attend_backward", mutates_args=(), device_types=("cpu", "cuda"))
def attend_backward(
    gradient: Tensor,
    poses: Tensor,
    weight: Tensor,
    query: Tensor,
    rows: int,
    stride: int,
    padding: int,
    xnor: bool = False,
    binary: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients of `attend` for poses, weight and query, each in the type of its own; votes are computed
    anew.
    """
    _check(poses, weight, query, rows, stride, padding)
    if not len(poses):
        return none_yet(poses, weight, query)
    geometry = rows, stride, padding, xnor, binary
    found = call_at(poses, _home(poses).backward, gradient, poses, weight, query, *geometry)
    d_poses, d_weight, d_query = map(as_promised, found, (poses, weight, query))
    return d_poses, d_weight, d_query


def _check(poses: Tensor, weight: Tensor, query: Tensor, rows: int, stride: int, padding: int) -> None:
    """Raise ValueError for shapes that are not those which `attend` names: loops read unchecked."""
    parents, _, _, types, columns, out = weight.shape
    if poses.ndim != 5 or poses.shape[3:] != (types, rows * columns):
        raise ValueError(f"poses are {list(poses.shape)}; they must be [b, h, w, {types}, {rows * columns}]")
    shape = len(poses), count_places(poses.shape, weight.shape, stride, padding), parents, rows * out
    if query.shape != shape:
        raise ValueError(f"query is {list(query.shape)}; it must be {list(shape)}")


@attend.register_fake
def _result(
    poses: Tensor,
    weight: Tensor,
    query: Tensor,
    rows: int,
    stride: int,
    padding: int,
    xnor: bool = False,
    binary: bool = False,
) -> Tensor:
    return query.new_empty(query.shape, dtype=widest(poses, weight, query))


@attend_backward.register_fake
def _(
    gradient: Tensor,
    poses: Tensor,
    weight: Tensor,
    query: Tensor,
    rows: int,
    stride: int,
    padding: int,
    xnor: bool = False,
    binary: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    return poses.new_empty(poses.shape), weight.new_empty(weight.shape), query.new_empty(query.shape)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.geometry = inputs[3:]


def _differentiate(ctx: Any, gradient: Tensor) -> tuple:
    saved = ctx.saved_tensors  # once: a checkpoint gives them no second time
    if asked_again():
        return tuple(gradients_anew(_plain, (*saved, *ctx.geometry), (gradient,)))
    return *attend_backward(gradient, *saved, *ctx.geometry), *[None] * len(ctx.geometry)


def _plain(*inputs: Any) -> Tensor:
    wide = widest(*inputs[:3], at_least=torch.float32)
    return plain(*(x.to(wide) for x in inputs[:3]), *inputs[3:]).to(widest(*inputs[:3]))


attend.register_autograd(_differentiate, setup_context=_keep)


@register_flop_formula(torch.ops.torchcaps.attend)
def _(
    poses: Any,
    weight: Any,
    query: Any,
    rows: int,
    stride: int,
    padding: int,
    xnor: bool = False,
    *_: Any,
    **__: Any,
) -> int:
    """Return FLOPs: products with W for the agreement and the sum; with xnor the product of signs besides."""
    return 2 * _products(weight, query, rows) + (2 * _elements(weight, query, rows) if xnor else 0)


@register_flop_formula(torch.ops.torchcaps.attend_backward)
def _(
    gradient: Any,
    poses: Any,
    weight: Any,
    query: Any,
    rows: int,
    stride: int,
    padding: int,
    xnor: bool = False,
    *_: Any,
    **__: Any,
) -> int:
    """Return FLOPs: two products for each of forward's, and the agreement once more."""
    return 5 * _products(weight, query, rows) + (4 * _elements(weight, query, rows) if xnor else 0)


def _products(weight: Any, query: Any, rows: int) -> int:
    """Return FLOPs of making all votes once, or of a product as large."""
    return 2 * weight[4] * _elements(weight, query, rows)


def _elements(weight: Any, query: Any, rows: int) -> int:
    """Return the number of elements of all votes."""
    parents, height, width, types, _, m = weight
    return query[0] * query[1] * rows * parents * height * width * types * m
