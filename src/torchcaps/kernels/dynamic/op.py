"""One iteration of dynamic routing as an operation of torch, forward and backward. See README.md for the formulas.

Sums are in float32 at least whatever the inputs are, so autocast leaves them as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from torchcaps.kernels.dynamic.plain import plain
from torchcaps.kernels.homes import as_promised, call_at, home_in, none_yet
from torchcaps.kernels.twice import asked_again, gradients_anew

_home = home_in("dynamic")


@torch.library.custom_op("torchcaps::dynamic_step", mutates_args=(), device_types=("cpu", "cuda"))
def dynamic_step(
    poses: Tensor, weight: Tensor, state: Tensor | None, initial: Tensor | None, xnor: bool, binary: bool, last: bool
) -> Tensor:
    """Return sum_i c_ij v_ij of votes v_ij = u_i W_ij that are never made, [b, j, d], in float32 at least.

    Args:
        poses: children [b, i, rows * columns], any of the floating types, as the three that follow.
        weight: [j, i, columns, m]; a vote has d = rows * m elements.
        state: c is the softmax over j of v . state [b, j, d]; where it is None, of the first iteration, 1 / j.
        initial: added to the logits, [i, j]; None for 0. It takes a state.
        xnor: whether votes agree as signs times their mean size (XnIDR).
        binary: whether the elements of a row of `poses`, and those of a column of `weight`, differ in their signs alone
            (XnODR): then sums that cancel are 0, and not what rounding leaves of them.
        last: whether agreements, v . state, are constants to the gradient; `initial` is none.

    Raises:
        ValueError: for shapes that are not these.
    """
    _check(poses, weight, state, initial)
    inputs = _widest(poses, weight, state, initial)
    if not len(poses):
        return _result(poses, weight, state, initial, xnor, binary, last)
    return call_at(poses, _home(poses).forward, *inputs, xnor, binary).contiguous()


@torch.library.custom_op("torchcaps::dynamic_step_backward", mutates_args=(), device_types=("cpu", "cuda"))
def dynamic_step_backward(
    gradient: Tensor,
    poses: Tensor,
    weight: Tensor,
    state: Tensor | None,
    initial: Tensor | None,
    xnor: bool,
    binary: bool,
    last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of poses, weight, state and initial, in their types; an empty one for what is None."""
    inputs = (poses, weight, state, initial)
    _check(*inputs)
    if not len(poses):
        return none_yet(*inputs)
    found = call_at(poses, _home(poses).backward, *_widest(gradient, *inputs), xnor, binary, last)
    outs = [poses.new_empty(0) if x is None else as_promised(out, x) for out, x in zip(found, inputs, strict=True)]
    return outs[0], outs[1], outs[2], outs[3]


def _check(poses: Tensor, weight: Tensor, state: Tensor | None, initial: Tensor | None) -> None:
    """Raise ValueError for shapes that are not those which `dynamic_step` names: loops read unchecked."""
    parents, children, columns, out = weight.shape
    if poses.ndim != 3 or poses.shape[1] != children or poses.shape[2] % columns:
        raise ValueError(f"poses are {list(poses.shape)}; they must be [b, {children}, rows * {columns}]")
    of_parents = len(poses), parents, poses.shape[2] // columns * out
    for what, each, shape in (("state", state, of_parents), ("initial", initial, (children, parents))):
        if each is not None and each.shape != shape:
            raise ValueError(f"{what} is {list(each.shape)}; it must be {list(shape)}")


def _widest(*tensors: Tensor | None) -> list[Tensor | None]:
    """Return all of them contiguous, and in the widest of their types, float32 at least."""
    dtype = torch.float32
    for x in tensors:
        dtype = dtype if x is None else torch.promote_types(dtype, x.dtype)
    return [None if x is None else x.to(dtype).contiguous() for x in tensors]


@dynamic_step.register_fake
def _result(
    poses: Tensor, weight: Tensor, state: Tensor | None, initial: Tensor | None, xnor: bool, binary: bool, last: bool
) -> Tensor:
    (wide, *_) = _widest(poses.new_empty(0), weight.new_empty(0), None if state is None else state.new_empty(0))
    assert wide is not None
    return wide.new_empty(poses.shape[0], weight.shape[0], poses.shape[2] // weight.shape[2] * weight.shape[3])


@dynamic_step_backward.register_fake
def _(
    gradient: Tensor,
    poses: Tensor,
    weight: Tensor,
    state: Tensor | None,
    initial: Tensor | None,
    xnor: bool,
    binary: bool,
    last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outs = [poses.new_empty(0) if x is None else x.new_empty(x.shape) for x in (poses, weight, state, initial)]
    return outs[0], outs[1], outs[2], outs[3]


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.flags = inputs[4:]


def _differentiate(ctx: Any, gradient: Tensor) -> tuple:
    saved = ctx.saved_tensors  # once: a checkpoint gives them no second time
    if asked_again():
        return tuple(gradients_anew(_plain, (*saved, *ctx.flags), (gradient,)))
    outs = dynamic_step_backward(gradient, *saved, *ctx.flags)
    return *(None if x is None else out for out, x in zip(outs, saved, strict=True)), None, None, None


def _plain(*inputs: Any) -> Tensor:
    return plain(*_widest(*inputs[:4]), *inputs[4:])  # pyright: ignore[reportArgumentType] - two of them are tensors


dynamic_step.register_autograd(_differentiate, setup_context=_keep)


@register_flop_formula(torch.ops.torchcaps.dynamic_step)
def _(poses: Any, weight: Any, state: Any, initial: Any, xnor: bool, *_: Any, **__: Any) -> int:
    """Return FLOPs: products with W for the sum of votes, and with a state for the agreement; with xnor that of signs
    besides.
    """
    if state is None:
        return _products(poses, weight)
    return 2 * _products(poses, weight) + (2 * _elements(poses, weight) if xnor else 0)


@register_flop_formula(torch.ops.torchcaps.dynamic_step_backward)
def _(
    gradient: Any, poses: Any, weight: Any, state: Any, initial: Any, xnor: bool, binary: bool, last: bool, **__: Any
) -> int:
    """Return FLOPs: two products for each of forward's; and the agreement, where it has a gradient, once more."""
    if state is None or last:
        return 2 * _products(poses, weight)
    return 5 * _products(poses, weight) + (4 * _elements(poses, weight) if xnor else 0)


@torch.library.custom_op("torchcaps::dynamic_of_few", mutates_args=(), device_types="cpu")
def dynamic_of_few(
    poses: Tensor, weight: Tensor, bias: Tensor | None, binary: bool, midpoint: bool, xnor: bool, iterations: int
) -> tuple[Tensor, Tensor]:
    """Return parents and what is carried on of all iterations, both [b, j, d], for graphs of `torch.compile`.

    Args:
        poses: children [b, i, c], at least one image, float32 or float64, as the two that follow.
        weight: [j, i, c, d].
        bias: of the parents, [j, d]; None for 0.
        binary, midpoint: see `torchcaps.kernels.few.votes_of_few`.
        xnor, iterations: see `torchcaps.kernels.dynamic.few.route_few`.
    """
    parents, carried = all_of_few(poses, weight, bias, binary, midpoint, xnor, iterations)
    return parents, carried.clone()  # they lie in one memory, which outputs of an operation may not


@dynamic_of_few.register_fake
def _(
    poses: Tensor, weight: Tensor, bias: Tensor | None, binary: bool, midpoint: bool, xnor: bool, iterations: int
) -> tuple[Tensor, Tensor]:
    out = poses.new_empty(poses.shape[0], weight.shape[0], weight.shape[3])
    return out, torch.empty_like(out)


def all_of_few(
    poses: Tensor, weight: Tensor, bias: Tensor | None, binary: bool, midpoint: bool, xnor: bool, iterations: int
) -> tuple[Tensor, Tensor]:
    """Return the same, outside of a graph, where calling an operation would take as long as a small layer."""
    from torchcaps.kernels.dynamic.few import route_few
    from torchcaps.kernels.few import votes_of_few

    votes = votes_of_few(poses.contiguous(), weight.contiguous(), binary, midpoint)
    return route_few(votes, None if bias is None else bias.detach().numpy(), xnor, iterations)


@register_flop_formula(torch.ops.torchcaps.dynamic_of_few)
def _(poses: Any, weight: Any, bias: Any, binary: bool, midpoint: bool, xnor: bool, iterations: int, **__: Any) -> int:
    """Return FLOPs: the votes once, and after the first iteration their products with a state and with couplings."""
    return _products(poses, weight) + 4 * (iterations - 1) * _elements(poses, weight)


def _products(poses: Any, weight: Any) -> int:
    """Return the FLOPs of making all votes once."""
    return 2 * poses[0] * poses[2] * weight[0] * weight[1] * weight[3]


def _elements(poses: Any, weight: Any) -> int:
    """Return the number of elements of all votes."""
    return poses[0] * poses[2] // weight[2] * weight[0] * weight[1] * weight[3]
