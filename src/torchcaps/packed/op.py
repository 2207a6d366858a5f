"""The loop of a packed layer as an operation of torch, and the loops that were made, each kept while its bits live."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula
from torch.utils.weak import WeakTensorKeyDictionary

from torchcaps.packed.signs import unpack_signs

if TYPE_CHECKING:
    from torchcaps.packed.loop import PackedLoop


class Made(NamedTuple):
    """A loop and what it was made of beside the bits."""

    loop: PackedLoop
    scales: ref[Tensor]
    bias: ref[Tensor] | None
    state: tuple[object, ...]  # versions of the tensors, and settings
    copies: list[Tensor]  # of those that have no version


_MADE = WeakTensorKeyDictionary()  # by the bits of a layer: `Made`


def find_loop(
    bits: Tensor, scales: Tensor, bias: Tensor | None, shape: Sequence[int], midpoint: bool, xnor: bool
) -> PackedLoop:
    """Return the loop of a layer, made anew where one of its tensors has changed or is another.

    Args:
        bits, scales, bias: of the layer on a CPU, see `torchcaps.packed.layers.PackedTransform`.
        shape: of its weights, [j, i, c, m].
        midpoint: whether signs of children are taken of their middle.
        xnor: whether signs of votes agree (XnIDR).
    """
    state = _version(bits), _version(scales), None if bias is None else _version(bias), *shape, midpoint, xnor
    made: Made | None = _MADE.get(bits)
    if made is not None and made.state == state and _still(made, bits, scales, bias):
        return made.loop
    from torchcaps.packed.loop import PackedLoop  # with numba, which packed layers on other devices do without

    parents, children, length, pose = shape
    positive = unpack_signs(bits, math.prod(shape)).view(parents, children, pose, length).transpose(-1, -2)
    loop = PackedLoop(positive, scales.squeeze(-2), bias, "midpoint" if midpoint else "zero", xnor)
    copies = [x.clone() for x in _unversioned(bits, scales, bias)]
    _MADE[bits] = Made(loop, ref(scales), None if bias is None else ref(bias), state, copies)
    return loop


def _still(made: Made, bits: Tensor, scales: Tensor, bias: Tensor | None) -> bool:
    """Return whether a loop was made of these tensors, as far as their versions do not tell."""
    if made.scales() is not scales or (made.bias and made.bias()) is not bias:
        return False
    return not made.copies or all(map(torch.equal, made.copies, _unversioned(bits, scales, bias)))


def _version(tensor: Tensor) -> tuple[int | None, int]:
    """Return how often a tensor was changed in place, None of one of inference mode, of which nobody counts it; and
    where it lies, which is all that an assignment of its `data` changes.
    """
    return None if tensor.is_inference() else tensor._version, tensor.data_ptr()


def _unversioned(*tensors: Tensor | None) -> list[Tensor]:
    return [x for x in tensors if x is not None and x.is_inference()]


@torch.library.custom_op("torchcaps::route_packed", mutates_args=(), device_types="cpu")
def route_packed(
    poses: Tensor,
    bits: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    shape: Sequence[int],
    midpoint: bool,
    xnor: bool,
    iterations: int,
) -> Tensor:
    """Return the parents [b, j, m] of children [b, i, c], float32, for graphs of `torch.compile`; see `find_loop`."""
    return find_loop(bits, scales, bias, shape, midpoint, xnor)(poses, iterations).contiguous()


@route_packed.register_fake
def _(poses: Tensor, bits: Tensor, scales: Tensor, bias: Tensor | None, shape: Sequence[int], *_: Any) -> Tensor:
    return poses.new_empty(poses.shape[0], shape[0], shape[3])


@register_flop_formula(torch.ops.torchcaps.route_packed)
def _(
    poses: Any, bits: Any, scales: Any, bias: Any, shape: Any, midpoint: bool, xnor: bool, iterations: int, **__: Any
) -> int:
    """Return FLOPs of the float form: the votes once, and after the first iteration their products with a state and
    with couplings.
    """
    parents, children, length, pose = shape
    votes = poses[0] * parents * children * pose
    return 2 * votes * length + 4 * (iterations - 1) * votes
