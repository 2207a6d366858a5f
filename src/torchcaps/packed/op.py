"""The loop of a packed layer as an operation of torch, and the loops that were made, each kept while its bits live."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from weakref import ref

import torch
from torch import Tensor
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
    state = _version(bits), _version(scales), bias is None or _version(bias), tuple(shape), midpoint, xnor
    made: Made | None = _MADE.get(bits)
    if made is not None and made.state == state and made.scales() is scales and (made.bias and made.bias()) is bias:
        return made.loop
    from torchcaps.packed.loop import PackedLoop  # with numba, which packed layers on other devices do without

    parents, children, length, pose = shape
    positive = unpack_signs(bits, math.prod(shape)).view(parents, children, pose, length).transpose(-1, -2)
    loop = PackedLoop(positive, scales.squeeze(-2), bias, "midpoint" if midpoint else "zero", xnor)
    _MADE[bits] = Made(loop, ref(scales), None if bias is None else ref(bias), state)
    return loop


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


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
def _(
    poses: Tensor,
    bits: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    shape: Sequence[int],
    midpoint: bool,
    xnor: bool,
    iterations: int,
) -> Tensor:
    return poses.new_empty(poses.shape[0], shape[0], shape[3])
