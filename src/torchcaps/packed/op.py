"""The loop of a packed layer as an operation of torch, and the loops that were made, each kept while its bits live."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import is_not
from typing import TYPE_CHECKING, NamedTuple
from weakref import ref

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from torchcaps.packed.signs import unpack_signs

if TYPE_CHECKING:
    from torchcaps.packed.loop import PackedLoop


class Made(NamedTuple):
    """A loop and what it was made of."""

    loop: PackedLoop
    tensors: tuple[ref[Tensor], ...]
    versions: tuple[int, ...]
    settings: tuple[object, ...]


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
    tensors = (bits, scales) if bias is None else (bits, scales, bias)
    versions, settings = tuple(map(_version, tensors)), (*shape, midpoint, xnor)
    made: Made | None = _MADE.get(bits)
    if made is None or (made.versions, made.settings) != (versions, settings) or _others(made, tensors):
        from torchcaps.packed.loop import PackedLoop  # with numba, which packed layers on other devices do without

        parents, children, length, pose = shape
        positive = unpack_signs(bits, math.prod(shape)).view(parents, children, pose, length).transpose(-1, -2)
        loop = PackedLoop(positive, scales.squeeze(-2), bias, "midpoint" if midpoint else "zero", xnor)
        made = _MADE[bits] = Made(loop, tuple(map(ref, tensors)), versions, settings)
    return made.loop


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _others(made: Made, tensors: Sequence[Tensor]) -> bool:
    return len(made.tensors) != len(tensors) or any(map(is_not, (each() for each in made.tensors), tensors))


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
