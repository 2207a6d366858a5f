"""One bit a weight: the inference form of layers whose weights are binary (XnODR, and XnODR with XnIDR).

A packed layer holds the sign of each weight as a bit and one scale for each child and each output element of a parent,
mean|W| over the child's d. So a weight costs 1 + 32 / d bits with float32 scales, 1 + 16 / d with half ones: at d = 8 a
6.4th and a 10.7th of float32, and never less than a 32nd.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from torchcaps.capsules import Capsules
from torchcaps.layers.layer import CapsuleLayer, CapsuleStack, Schedule
from torchcaps.layers.transforms import Transform, flatten_space
from torchcaps.routing import Routing, Step
from torchcaps.routing.xnodr import XnODR
from torchcaps.votes import Threshold, Votes
from torchcaps.votes.binary import binary_children, weight_middle

if TYPE_CHECKING:
    from torchcaps.kernels.packed.loop import PackedLoop


class PackedTransform(nn.Module):
    """What `transform` votes when children and weights are xnorized. It has buffers and no parameters.

    `bits` is uint8 [ceil(weights / 8)], 1 for a positive weight, lowest bit first, in the order [j, *window, m, c]: the
    d of a child side by side, as a dot product wants them. `scales` is [j, *window, 1, m].

    Args:
        transform: linear or convolutional, on any device, the meta device too.
        threshold: of the signs, of children and weights.
        scales: type of the scales; votes are those of the float form with its scales rounded to this type.
    """

    makes = None  # its votes are made of bits, which no kernel reads
    bits: Tensor
    scales: Tensor

    def __init__(self, transform: Transform, threshold: Threshold, scales: torch.dtype):
        super().__init__()
        weight = transform.weight.detach()  # [j, *window, c, m]
        middle = weight_middle(weight, threshold)
        self.register_buffer("bits", _pack((weight > (0 if middle is None else middle)).transpose(-1, -2)))
        self.register_buffer("scales", weight.abs().mean(-2, keepdim=True).to(scales))
        self.form = copy.deepcopy(transform)
        self.form.register_parameter("weight", None)
        self.sizes, self.shape, self.place = transform.sizes, transform.shape, None
        self.threshold: Threshold = threshold

    def positive(self) -> Tensor:
        """Which weights are, bool [j, *window, c, m]."""
        *outer, c, m = self.shape
        return _unpack(self.bits, math.prod(self.shape)).view(*outer, m, c).transpose(-1, -2)

    def forward(self, children: Capsules) -> Votes:
        scales = self.scales.to(children.poses.dtype)
        return self.form.vote(
            binary_children(children, self.form.rows, self.threshold),
            torch.where(self.positive(), scales, -scales),
            binary=True,
        )


class PackedLayer(CapsuleLayer):
    """A routed layer with packed weights, for inference; made by `pack`. It fits into a `CapsuleStack`."""

    def __init__(self, transform: PackedTransform, routing: Routing):
        super().__init__(transform, routing)  # pyright: ignore[reportArgumentType] - it has sizes, and makes votes

    def votes(self, children: Capsules) -> Votes:
        """Of the packed transform, which binarizes the children itself."""
        return self.transform(children)

    def bytes_per_weight(self) -> float:
        """Stored bytes, bits and scales, for each weight of the float form (which has 4 in float32)."""
        stored = sum(buffer.nbytes for buffer in self.transform.buffers())
        return stored / math.prod(self.transform.shape)


class PackedStack(CapsuleStack):
    """A stack of one packed layer, for inference; made by `pack_stack`.

    On a CPU, in float32 and without gradients, all iterations run at once on the bits (`torchcaps.kernels.packed`),
    where the layer fits that loop; its step then has neither coupling nor state. Otherwise it is as any stack.
    """

    def __init__(self, layer: PackedLayer, iterations: int, schedule: Schedule = "sequential"):
        super().__init__([layer], iterations, schedule)
        self._made: PackedLoop | None = None
        self._made_of: list[tuple[Tensor, int]] = []  # the tensors of which the loop was made, and their versions

    def forward(self, children: Capsules, visit: Callable[[int, int, Step], None] | None = None) -> tuple[Step, ...]:
        loop = self._loop(children) if visit is None else None
        if loop is None:
            return super().forward(children, visit)
        return (Step(Capsules(loop(flatten_space(children).poses, self.iterations)), None, None),)

    def _loop(self, children: Capsules) -> PackedLoop | None:
        poses = children.poses
        if poses.device.type != "cpu" or poses.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return None
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.compiler.is_exporting():
            return None
        layer = self.layers[0]
        assert isinstance(layer, PackedLayer) and isinstance(layer.transform, PackedTransform)
        if layer.implementation == "plain":
            return None
        tensors = (layer.transform.bits, layer.transform.scales)
        now = [(tensor, 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
        if [(id(tensor), version) for tensor, version in now] != [(id(old), was) for old, was in self._made_of]:
            from torchcaps.kernels.packed.loop import PackedLoop, fits_loop

            self._made, self._made_of = PackedLoop(layer) if fits_loop(layer) else None, now
        return self._made


def has_binary_weights(stack: CapsuleStack) -> bool:
    """Whether a layer of the stack is yet to be packed."""
    return any(
        isinstance(layer, CapsuleLayer) and layer.routing.spec.binary_weights and not isinstance(layer, PackedLayer)
        for layer in stack.layers
    )


def pack_stack(stack: CapsuleStack, scales: torch.dtype = torch.float32) -> CapsuleStack:
    """The inference form of a stack: its layers with binary weights are packed, others are copied as they are.

    Args:
        stack: of which at least one layer has binary weights.
        scales: see `pack`.

    Raises:
        ValueError: when no layer has.
    """
    if not has_binary_weights(stack):
        raise ValueError("no layer of the stack has binary weights: only 'xnodr' and 'xnodr-xnidr' can be packed")
    layers = [
        pack(layer, scales) if layer.routing.spec.binary_weights else copy.deepcopy(layer)
        for layer in stack.layers
        if isinstance(layer, CapsuleLayer)
    ]
    if len(layers) == 1 and isinstance(layers[0], PackedLayer):
        return PackedStack(layers[0], stack.iterations, stack.schedule).train(stack.training)
    return CapsuleStack(layers, stack.iterations, stack.schedule).train(stack.training)


def pack(layer: CapsuleLayer, scales: torch.dtype = torch.float32) -> PackedLayer:
    """The inference form of a layer whose weights are binary, with its own copy of everything.

    Its outputs are those of `layer`, and its state holds no float weights. To load a packed state without them, build
    the layer on the meta device: `with torch.device("meta"): packed = pack(CapsuleLayer(...))`, then
    `packed.load_state_dict(state, assign=True)`.

    Args:
        layer: with a routing that declares `binary_weights`: "xnodr" or "xnodr-xnidr".
        scales: torch.float32, or torch.float16 or torch.bfloat16; halves make outputs those of the rounded scales.

    Raises:
        ValueError: for layers whose weights are not binary (XnIDR binarizes votes and outputs only), and for scales
            that are not floating point.
    """
    name = layer.routing.spec.name
    if not layer.routing.spec.binary_weights:
        reason = " (XnIDR binarizes votes and outputs, its weights stay in floating point)" if name == "xnidr" else ""
        raise ValueError(f"weights of routing {name!r} are not binary{reason}: 'xnodr' or 'xnodr-xnidr' can be packed")
    if not scales.is_floating_point:
        raise ValueError(f"scales are {scales}; they must be floating point: torch.float32, torch.float16")
    assert isinstance(layer.routing, XnODR)
    transform = PackedTransform(layer.transform, layer.routing.threshold, scales)
    return PackedLayer(transform, copy.deepcopy(layer.routing)).train(layer.training)


def _pack(positive: Tensor) -> Tensor:
    """bool [...] -> uint8 [ceil(n / 8)], lowest bit first, padded with 0."""
    flat = positive.flatten().to(torch.uint8)
    flat = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).unflatten(0, (-1, 8))
    places = torch.tensor([1 << k for k in range(8)], dtype=torch.uint8, device=flat.device)
    return (flat * places).sum(1, dtype=torch.uint8)


def _unpack(bits: Tensor, count: int) -> Tensor:
    """uint8 [n] -> bool [count]."""
    places = torch.tensor([1 << k for k in range(8)], dtype=torch.uint8, device=bits.device)
    return (bits.unsqueeze(1) & places).ne(0).flatten()[:count]
