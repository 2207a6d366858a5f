"""One bit a weight: the inference form of layers whose weights are binary (XnODR, with XnIDR or not, and `XnorConv2d`).

A packed layer holds the sign of each weight as a bit and one scale for each child and each output element of a parent,
mean|W| over the child's d. So a weight costs 1 + 32 / d bits with float32 scales, 1 + 16 / d with half ones: at d = 8 a
6.4th and a 10.7th of float32, and never less than a 32nd.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from torchcaps.capsules import Capsules
from torchcaps.layers.binarize import XnorConv2d, xnor_convolve
from torchcaps.layers.layer import CapsuleLayer, CapsuleStack
from torchcaps.layers.transforms import LinearTransform, Transform, flatten_space
from torchcaps.names import check_choice
from torchcaps.packed.op import find_loop, route_packed
from torchcaps.packed.signs import pack_signs, unpack_signs
from torchcaps.routing import Routing, Step
from torchcaps.routing.fused import DEVICES, Implementation, compiling, lacks, say_plain, try_numba, watched
from torchcaps.routing.xnidr import XnODRXnIDR
from torchcaps.routing.xnodr import XnODR
from torchcaps.votes import Threshold, Votes
from torchcaps.votes.affine import check_types
from torchcaps.votes.binary import binary_children, weight_middle


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
        self.register_buffer("bits", pack_signs((weight > (0 if middle is None else middle)).transpose(-1, -2)))
        self.register_buffer("scales", weight.abs().mean(-2, keepdim=True).to(scales))
        self.form = copy.deepcopy(transform)
        self.form.register_parameter("weight", None)
        self.sizes, self.shape, self.place = transform.sizes, transform.shape, None
        self.threshold: Threshold = threshold

    def positive(self) -> Tensor:
        """Return which weights are, bool [j, *window, c, m]."""
        *outer, c, m = self.shape
        return unpack_signs(self.bits, math.prod(self.shape)).view(*outer, m, c).transpose(-1, -2)

    def forward(self, children: Capsules) -> Votes:
        dtype = children.poses.dtype
        check_types(children, dtype if dtype.is_floating_point else self.scales.dtype)
        scales = self.scales.to(dtype)
        return self.form.vote(
            binary_children(self.form.seen(children), self.form.rows, self.threshold),
            torch.where(self.positive(), scales, -scales),
            binary=True,
        )


class PackedLayer(CapsuleLayer):
    """A routed layer with packed weights, for inference; made by `pack`. It fits into a `CapsuleStack`.

    On a CPU, in float32, where no gradient is asked for, all iterations run at once on the bits
    (`loop.py`), if the layer fits that loop: linear, of vector poses, routed over parents from zero.
    Its step then has neither coupling nor state. Else its steps are plain, of weights that are unpacked at each call,
    which saves memory and no time: convolutional capsules and matrix poses, other devices and types.
    Without numba, which compiles the loop, a warning says so. `implementation` "plain" never takes the loop, "fused"
    wants a layer that fits it.
    """

    def __init__(self, transform: PackedTransform, routing: Routing):
        super().__init__(transform, routing)  # pyright: ignore[reportArgumentType] - it has sizes, and makes votes

    @property
    def implementation(self) -> Implementation:
        return self._implementation

    @implementation.setter
    def implementation(self, value: Implementation) -> None:
        check_choice("implementation", value, get_args(Implementation))
        self._refused = refuses(self)
        try_numba()
        reason = self._refused if "cpu" in DEVICES else lacks("cpu")
        if value == "fused" and reason is not None:
            raise ValueError(f"implementation is 'fused', but {reason}; use 'auto' or 'plain'")
        self._fused, self._whole, self._implementation = None, None, value

    def votes(self, children: Capsules) -> Votes:
        """Return those of the packed transform, which binarizes the children itself."""
        return self.transform(children)

    def forward(self, children: Capsules, iterations: int = 1) -> Step:
        """Return the last step of `iterations` of this layer alone; by its loop that step has neither coupling nor
        state.
        """
        poses = children.poses
        if not self._loops_now(poses):
            return super().forward(children, iterations)
        inputs = _inputs(self)
        poses = flatten_space(children).poses
        parents = route_packed(poses, *inputs, iterations) if compiling() else find_loop(*inputs)(poses, iterations)
        return Step(Capsules(parents), None, None)

    def _loops_now(self, poses: Tensor) -> bool:
        """Return whether the loop can be taken, and says it where numba alone is missing."""
        if self.implementation == "plain" or watched():
            return False
        if poses.device.type != "cpu" or poses.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return False
        if type(poses) not in (Tensor, nn.Parameter):  # a fake one holds no numbers
            return False
        if torch.is_grad_enabled() and any(x.requires_grad for x in (poses, *self.routing.parameters())):
            return False
        if self._refused is not None or _starts_elsewhere(self.routing) is not None:
            return False
        if "cpu" not in DEVICES and not compiling():  # a graph cannot say it
            say_plain()
        return "cpu" in DEVICES


def refuses(layer: PackedLayer) -> str | None:
    """Return why the loop does not take a layer; None where it does."""
    transform, routing = layer.transform, layer.routing
    assert isinstance(transform, PackedTransform)
    if type(routing) not in (XnODR, XnODRXnIDR) or not isinstance(routing, XnODR):
        return f"the packed loop is of XnODR, and of it with XnIDR, not of {type(routing).__name__}"
    if (reason := _starts_elsewhere(routing)) is not None:
        return reason
    if type(transform.form) is not LinearTransform or (transform.form.rows, transform.form.shared) != (1, 1):
        return "the packed loop is of linear layers of vector poses, whose positions share no weights"
    if transform.shape[-2] > 64:
        return f"the packed loop takes poses of up to 64 elements, not {transform.shape[-2]}"
    return None


def _starts_elsewhere(routing: Routing) -> str | None:
    """Return why the loop does not take the settings of a routing, which may change after it was packed."""
    assert isinstance(routing, XnODR)
    if routing.over != "parents" or routing.initial is not None:
        return "the packed loop routes over 'parents' from start 'zero'"
    return None


def _inputs(layer: PackedLayer) -> tuple[Tensor, Tensor, Tensor | None, Sequence[int], bool, bool]:
    """Return what `find_loop` takes, of a layer that fits the loop."""
    transform, routing = layer.transform, layer.routing
    assert isinstance(transform, PackedTransform) and isinstance(routing, XnODR)
    flags = routing.threshold == "midpoint", isinstance(routing, XnODRXnIDR)
    return transform.bits, transform.scales, routing.bias, transform.shape, *flags


class PackedStack(CapsuleStack):
    """A stack some of whose layers are packed, for inference; made by `pack`.

    In sequence each layer runs alone, a packed one by its loop where it can. Concurrent layers, and a visitor, who
    wants to see each step, have plain steps.
    """

    def forward(self, children: Capsules, visit: Callable[[int, int, Step], None] | None = None) -> tuple[Step, ...]:
        layers = self._layers()
        if visit is not None or (self.schedule == "concurrent" and len(layers) > 1):
            return super().forward(children, visit)
        steps: list[Step] = []
        for layer in layers:
            steps.append(layer(steps[-1].capsules if steps else children, self.iterations))
        return tuple(steps)


class PackedXnorConv2d(nn.Module):
    """What an `XnorConv2d` computes, of one bit a weight and one scale a filter; made by `pack`.

    Its signs are unpacked at each call, so that it saves memory and no time: a 32nd of float32 but for the scales.
    """

    bits: Tensor
    scales: Tensor

    def __init__(self, conv: XnorConv2d, scales: torch.dtype):
        super().__init__()
        signs, scale = conv.binary_weight()
        self.register_buffer("bits", pack_signs(signs > 0))
        self.register_buffer("scales", scale.to(scales))
        self.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().clone(), requires_grad=False)
        self.shape, self.stride, self.padding = tuple(conv.weight.shape), conv.stride, conv.padding
        self.threshold: Threshold = conv.threshold

    def forward(self, input: Tensor) -> Tensor:
        """Map [b, c, h, w] -> [b, out, h', w']."""
        positive = unpack_signs(self.bits, math.prod(self.shape)).view(self.shape)
        signs = torch.where(positive, 1.0, -1.0).to(input.dtype)
        scale = self.scales.to(input.dtype)
        return xnor_convolve(input, signs, scale, self.bias, self.stride, self.padding, self.threshold)
