"""One iteration of EM routing as an operation of torch, forward and backward. See README.md for the formulas.

Sums are in float32 at least whatever the inputs are, so autocast leaves them as they are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from torchcaps.kernels.em.inputs import Geometry, Inputs
from torchcaps.kernels.em.plain import plain
from torchcaps.kernels.em.sums import moments, of_parents, of_votes
from torchcaps.kernels.homes import as_promised, call_at, home_in, none_yet
from torchcaps.kernels.places import count_places
from torchcaps.kernels.twice import asked_again, gradients_anew
from torchcaps.kernels.types import widest
from torchcaps.votes.children import check_activations

_home = home_in("em")


@torch.library.custom_op("torchcaps::em_step", mutates_args=(), device_types=("cpu", "cuda"))
def em_step(
    poses: Tensor,
    weight: Tensor,
    activations: Tensor,
    mean: Tensor | None,
    scale: Tensor | None,
    prior: Tensor | None,
    rows: int,
    stride: int,
    padding: int,
    whole: bool,
    dot: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Do the E step and the M step of votes v_ij = u_i W_ij that are never made, in float32 at least.

    With c_ij = softmax of prior_j - sum_d (scale_j (v_ij - mean_j))^2 over the parents that compete, or of prior_j +
    sum_d mean_j v_ij where there is no scale, w_ij = c_ij a_i and s_ij = w_ij / max(sum_i w_ij, eps): m_j = sum_i
    s_ij v_ij, sum_i s_ij (v_ij - m_j)^2 and sum_i w_ij.

    Args:
        poses: children [b, h, w, n, rows * c], any of the floating types, as all that follow.
        weight: [j, kernel height, kernel width, n, c, m].
        activations: a, [b, h, w, n].
        mean, scale, prior: of the parents that votes are compared with, [b, p, j, rows * m] twice and [b, p, j]; p
            counts the positions of the windows. With `dot` there is no scale; all None, in a first iteration, votes are
            not compared at all: then w_ij = a_i.
        rows, stride, padding, whole, dot: see `Geometry`; without `dot` a state has a scale.
        eps: floor of the sum of weights where it divides.

    Returns:
        The first two [b, p, j, d], the third [b, p, j], and what backward needs of the competition over windows, [b, h
        w, n, 2] or empty.
    """
    if not len(poses):
        return _result(poses, weight, activations, mean, scale, prior, rows, stride, padding, whole, dot, eps)
    geometry = Geometry(rows, stride, padding, whole, dot)
    _check(poses, weight, activations, mean, scale, prior, geometry)
    inputs = Inputs(*_alike(poses, weight, activations, mean, scale, prior))
    centre, square, total, seen = call_at(poses, _home(poses).forward, inputs, geometry)
    return *moments(centre, square, total, eps), seen


@torch.library.custom_op("torchcaps::em_step_backward", mutates_args=(), device_types=("cpu", "cuda"))
def em_step_backward(
    d_mean: Tensor,
    d_variance: Tensor,
    d_total: Tensor,
    poses: Tensor,
    weight: Tensor,
    activations: Tensor,
    mean: Tensor | None,
    scale: Tensor | None,
    prior: Tensor | None,
    found_mean: Tensor,
    found_variance: Tensor,
    found_total: Tensor,
    seen: Tensor,
    rows: int,
    stride: int,
    padding: int,
    whole: bool,
    dot: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return gradients for poses, weight, activations and the state, in their types; an empty one for what is None.

    Votes are computed anew. The arguments from `found_mean` on are what `em_step` gave and took.
    """
    inputs = poses, weight, activations, mean, scale, prior
    if not len(poses):
        return none_yet(*inputs)
    geometry = Geometry(rows, stride, padding, whole, dot)
    _check(*inputs, geometry)
    d_mean, d_variance, d_total, *given = _alike(d_mean, d_variance, d_total, *inputs)
    result = of_votes(d_mean, d_variance, d_total, found_mean, found_variance, found_total, eps)
    wide = Inputs(*given)
    of_poses, of_weight, of_activations, *sums = call_at(poses, _home(poses).backward, result, wide, seen, geometry)
    found = iter((of_poses, of_weight, of_activations, *of_parents(sums, wide.scale)))
    outs = [poses.new_empty(0) if x is None else as_promised(next(found), x) for x in inputs]
    return outs[0], outs[1], outs[2], outs[3], outs[4], outs[5]


def _check(
    poses: Tensor,
    weight: Tensor,
    activations: Tensor,
    mean: Tensor | None,
    scale: Tensor | None,
    prior: Tensor | None,
    geometry: Geometry,
) -> None:
    """Raise ValueError for shapes that are not those which `em_step` names, and where a state has a scale that is not
    looked at, or lacks one that is: loops read unchecked.
    """
    rows, stride, padding, _, dot = geometry
    check_activations(poses, activations)
    parents, _, _, types, columns, out = weight.shape
    if poses.shape[3:] != (types, rows * columns):
        raise ValueError(f"poses are {list(poses.shape)}; they must be [b, h, w, {types}, {rows * columns}]")
    of_parents = len(poses), count_places(poses.shape, weight.shape, stride, padding), parents
    whole = *of_parents, rows * out
    for what, each, shape in (("mean", mean, whole), ("scale", scale, whole), ("prior", prior, of_parents)):
        if each is not None and each.shape != shape:
            raise ValueError(f"{what} is {list(each.shape)}; it must be {list(shape)}")
    if mean is not None and (scale is None) != dot:
        raise ValueError(f"dot is {dot}, and the state has {'no' if scale is None else 'a'} scale: one of both")


def _alike(*tensors: Tensor | None) -> list[Any]:
    """Return all of them contiguous, and in the widest of their types, float32 at least."""
    wide = widest(*(x for x in tensors if x is not None), at_least=torch.float32)
    return [None if x is None else x.to(wide).contiguous() for x in tensors]


@em_step.register_fake
def _result(
    poses: Tensor,
    weight: Tensor,
    activations: Tensor,
    mean: Tensor | None,
    scale: Tensor | None,
    prior: Tensor | None,
    rows: int,
    stride: int,
    padding: int,
    whole: bool,
    dot: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    given = [x for x in (poses, weight, activations, mean, scale, prior) if x is not None]
    wide = widest(*given, at_least=torch.float32)
    images, height, width, types, _ = poses.shape
    parents = images, count_places(poses.shape, weight.shape, stride, padding), weight.shape[0]
    seen = (images, height * width, types, 2) if whole and mean is not None else (0, 0, 0, 2)
    elements = rows * weight.shape[-1]
    shapes = (*parents, elements), (*parents, elements), parents, seen
    mean, variance, total, claims = (poses.new_empty(shape, dtype=wide) for shape in shapes)
    return mean, variance, total, claims


@em_step_backward.register_fake
def _(
    d_mean: Tensor,
    d_variance: Tensor,
    d_total: Tensor,
    poses: Tensor,
    weight: Tensor,
    activations: Tensor,
    mean: Tensor | None,
    scale: Tensor | None,
    prior: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = poses, weight, activations, mean, scale, prior
    outs = [poses.new_empty(0) if x is None else x.new_empty(x.shape) for x in inputs]
    return outs[0], outs[1], outs[2], outs[3], outs[4], outs[5]


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:6], *output)
    ctx.mark_non_differentiable(output[3])
    ctx.geometry = inputs[6:]


def _differentiate(ctx: Any, d_mean: Tensor, d_variance: Tensor, d_total: Tensor, _: Any) -> tuple:
    saved = ctx.saved_tensors  # once: a checkpoint gives them no second time
    if asked_again():
        return tuple(gradients_anew(_plain, (*saved[:6], *ctx.geometry), (d_mean, d_variance, d_total)))
    found = em_step_backward(d_mean, d_variance, d_total, *saved, *ctx.geometry)
    gradients = [None if x is None else out for out, x in zip(found, saved[:6], strict=True)]
    return *gradients, *[None] * len(ctx.geometry)


def _plain(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    return plain(*_alike(*inputs[:6]), *inputs[6:])


em_step.register_autograd(_differentiate, setup_context=_keep)


@register_flop_formula(torch.ops.torchcaps.em_step)
def _(
    poses: Any,
    weight: Any,
    activations: Any,
    mean: Any,
    scale: Any,
    prior: Any,
    rows: int,
    *_: Any,
    out_shape: Any,
    **__: Any,
) -> int:
    """Return FLOPs: products with W for mean and squares, and with a state for the logits."""
    return (2 if mean is None else 3) * _products(weight, out_shape[0], rows)


@register_flop_formula(torch.ops.torchcaps.em_step_backward)
def _(
    d_mean: Any,
    d_variance: Any,
    d_total: Any,
    poses: Any,
    weight: Any,
    activations: Any,
    mean: Any,
    scale: Any,
    *others: Any,
    **__: Any,
) -> int:
    """Return FLOPs: two products for each of forward's, and all but that of the mean once more."""
    return (5 if mean is None else 8) * _products(weight, d_mean, others[5])


def _products(weight: Any, parents: Any, rows: int) -> int:
    """Return FLOPs of making all votes once, or of a product as large."""
    return 2 * parents[0] * parents[1] * rows * math.prod(weight)
