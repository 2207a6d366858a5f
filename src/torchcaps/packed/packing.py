"""Which layers of a module are packed: those whose weights are binary, wherever in it they stand."""

from __future__ import annotations

import copy
from typing import TypeVar, overload

import torch
from torch import nn

from torchcaps.layers.binarize import XnorConv2d
from torchcaps.layers.layer import CapsuleLayer, CapsuleStack
from torchcaps.layers.transforms import ConvTransform, LinearTransform, PooledTransform, Transform
from torchcaps.packed.layers import PackedLayer, PackedStack, PackedTransform, PackedXnorConv2d
from torchcaps.routing.xnodr import XnODR

M = TypeVar("M", bound=nn.Module)
VOTING = (LinearTransform, ConvTransform, PooledTransform)  # whose votes are children as they are seen times weights


@overload
def pack(module: CapsuleLayer, scales: torch.dtype = ...) -> PackedLayer: ...
@overload
def pack(module: CapsuleStack, scales: torch.dtype = ...) -> PackedStack: ...
@overload
def pack(module: XnorConv2d, scales: torch.dtype = ...) -> PackedXnorConv2d: ...
@overload
def pack(module: M, scales: torch.dtype = ...) -> M: ...
def pack(module: nn.Module, scales: torch.dtype = torch.float32) -> nn.Module:
    """Return the inference form of a layer, a stack, a head or a whole model: one bit for each binary weight.

    A copy, in evaluation mode and without gradients, of which all layers with binary weights are packed: capsules that
    XnODR routes, with XnIDR or without, and xnorized convolutions. What else there is stays as it is. Outputs are those
    of `module`, and the state holds no float form of a packed weight. To load a packed state without them, build the
    module on the meta device: `with torch.device("meta"): packed = pack(CapsuleLayer(...))`, then
    `packed.load_state_dict(state, assign=True)`.

    Args:
        module: with at least one layer whose routing declares `binary_weights` ("xnodr", "xnodr-xnidr"), or one
            `XnorConv2d`.
        scales: torch.float32, or torch.float16 or torch.bfloat16; halves make outputs those of the rounded scales.

    Raises:
        ValueError: where no weight is binary (XnIDR binarizes votes and outputs only), for a transform whose votes are
            changed after or before they are made, such as by a batch norm or a `vote` of its own, and for scales that
            are not floating point.
    """
    if not scales.is_floating_point:
        raise ValueError(f"scales are {scales}; they must be floating point: torch.float32, torch.float16")
    if isinstance(module, CapsuleLayer):
        packed = _pack_layer(module, scales)
    elif isinstance(module, XnorConv2d):
        packed = PackedXnorConv2d(module, scales)
    elif isinstance(module, CapsuleStack):
        packed = _pack_stack(module, scales)
    else:
        packed = _pack_parts(module, scales)
    return packed.requires_grad_(False).eval()


def has_binary_weights(module: nn.Module) -> bool:
    """Return whether a module has weights that `pack` packs, and that are not packed yet."""
    return any(map(_is_binary, module.modules()))


def _is_binary(layer: nn.Module) -> bool:
    """Return whether a layer has binary weights that are yet to be packed."""
    if isinstance(layer, CapsuleLayer):
        return layer.routing.spec.binary_weights and not isinstance(layer, PackedLayer)
    return isinstance(layer, XnorConv2d)


def _pack_layer(layer: CapsuleLayer, scales: torch.dtype) -> PackedLayer:
    name = layer.routing.spec.name
    if isinstance(layer, PackedLayer):
        raise ValueError("the layer is packed already")
    if not layer.routing.spec.binary_weights:
        reason = " (XnIDR binarizes votes and outputs, its weights stay in floating point)" if name == "xnidr" else ""
        raise ValueError(f"weights of routing {name!r} are not binary{reason}: 'xnodr' or 'xnodr-xnidr' can be packed")
    kind = type(layer.transform)
    if kind.forward is not Transform.forward or not any(kind.vote is each.vote for each in VOTING):
        raise ValueError(
            f"a layer with {kind.__name__} cannot be packed: its votes are more than children times weights"
        )
    assert isinstance(layer.routing, XnODR)
    transform = PackedTransform(layer.transform, layer.routing.threshold, scales)
    return PackedLayer(transform, copy.deepcopy(layer.routing))


def _pack_stack(stack: CapsuleStack, scales: torch.dtype) -> PackedStack:
    layers = [each for each in stack.layers if isinstance(each, CapsuleLayer)]
    if not any(map(_is_binary, layers)):
        raise ValueError("no layer of the stack has binary weights: only 'xnodr' and 'xnodr-xnidr' can be packed")
    packed = [_pack_layer(each, scales) if _is_binary(each) else copy.deepcopy(each) for each in layers]
    return PackedStack(packed, stack.iterations, stack.schedule)


def _pack_parts(module: nn.Module, scales: torch.dtype) -> nn.Module:
    """Return a copy of a module that holds what can be packed, packed."""
    packed, done = copy.deepcopy(module), False
    for name, part in list(packed.named_modules()):
        if isinstance(part, CapsuleStack):
            found = _pack_stack(part, scales) if any(map(_is_binary, part.layers)) else None
        else:
            found = pack(part, scales) if _is_binary(part) and not _in_stack(packed, name) else None
        if found is not None:
            packed.set_submodule(name, found)
            done = True
    if not done:
        raise ValueError(
            "the model has no layer with binary weights: only those of routing 'xnodr' and 'xnodr-xnidr', and xnorized "
            "convolutions, can be packed"
        )
    return packed


def _in_stack(module: nn.Module, name: str) -> bool:
    """Return whether the part `name` of a module is a layer of a stack, which is packed as a whole."""
    above = name.rpartition(".layers.")[0]
    return ".layers." in name and isinstance(module.get_submodule(above), CapsuleStack)
