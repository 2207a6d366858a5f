"""What Sun et al. 2023 (XnODR and XnIDR) count, in their convention: one function a formula.

Eq. 10 to 15 are printed. The rest, of Table 5 and 9, has no formula in the paper; what stands here gives the printed
values for both of its layers, of 160 and 256 capsules. Their convention is not one: of a network's body FLOPs are about
multiply-adds, of its head two a multiply-add, and 64 binary operations (BOPs) are one FLOP.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

BINARY_OPERATIONS_A_CLOCK = 64


class Layer(NamedTuple):
    """The one capsule layer of their networks."""

    capsin: int  # 160 on MobileNet V2, 256 on ResNet-50
    capsout: int = 10
    dimin: int = 8
    dimout: int = 16
    iterations: int = 3

    @property
    def parameters(self) -> int:
        """Return W [capsin, capsout, dimin, dimout]."""
        return self.capsin * self.capsout * self.dimin * self.dimout


def speed_up(operations: int, full_precision: int) -> float:
    """Return, by Eq. 9, operations over what they become when 64 are one, and some stay in full precision."""
    return operations / (operations / BINARY_OPERATIONS_A_CLOCK + full_precision)


def xnodr_speed_up(layer: Layer) -> float:
    """Return the speed-up of Eq. 12; it carries one dim_out too many."""
    return speed_up(layer.capsin * layer.capsout * layer.dimout**2 * layer.dimin, layer.dimin)


def xnodr_speed_up_by_eq_11(layer: Layer) -> float:
    """Return the same by Eq. 11, which adds the parents where Eq. 12 adds the elements of a child."""
    return speed_up(layer.capsin * layer.capsout * layer.dimout**2 * layer.dimin, layer.capsout)


def xnidr_speed_up(layer: Layer) -> float:
    """Return the speed-up of Eq. 15."""
    return speed_up(layer.capsin * layer.capsout * layer.dimout**2, layer.dimout)


def xnodr_bops(layer: Layer) -> int:
    """Return, by Table 5, 3 N J D."""
    return 3 * layer.capsin * layer.capsout * layer.dimout


def xnidr_bops(layer: Layer) -> int:
    """Return, by Table 5, 3 N J for each update of the logits, of which there is one less than iterations."""
    return 3 * (layer.iterations - 1) * layer.capsin * layer.capsout


def xnor_flops(bops: int) -> float:
    """Return the FLOPs, of which one is 64 binary operations (Table 5)."""
    return bops / BINARY_OPERATIONS_A_CLOCK


def binarization_flops(elements: int) -> int:
    """Return, by Table 5, nine operations for each element that is binarized (appendix A)."""
    return 9 * elements


def xnodr_binarization(layer: Layer) -> int:
    """Return the operations that binarize the inputs, tiled once per parent, and of W."""
    return binarization_flops(layer.capsin * layer.capsout * layer.dimin + layer.parameters)


def xnidr_binarization(layer: Layer) -> int:
    """Return the operations that binarize the votes and of the outputs, once for each update of the logits."""
    elements = layer.capsin * layer.capsout * layer.dimout + layer.capsout * layer.dimout
    return (layer.iterations - 1) * binarization_flops(elements)


def projection_flops(layer: Layer) -> int:
    """Return, by Eq. 7, two a multiply-add."""
    return 2 * layer.parameters


def routing_flops(layer: Layer) -> int:
    """Return 1,660 a capsule with J = 10, D = 16, R = 3. Our reading: R sums and R - 1 agreements of 2 D, and 2 R
    besides.
    """
    per_pair = 2 * layer.dimout * (2 * layer.iterations - 1) + 2 * layer.iterations
    return layer.capsin * layer.capsout * per_pair


def dynamic_flops(layer: Layer) -> int:
    """Return, by Table 9, 4,220 a capsule."""
    return projection_flops(layer) + routing_flops(layer)


def xnodr_flops(layer: Layer) -> float:
    """Return, by Table 5, total, routing, binarization and the XNOR operation in place of the projection."""
    return routing_flops(layer) + xnodr_binarization(layer) + xnor_flops(xnodr_bops(layer))


def xnidr_flops(layer: Layer) -> float:
    """Return, by Table 5, total, N J (2 d D + 4 D R + 3 R) + 9 R (N J D + J D) + 3 R N J / 64.

    Our reading: the projection; in each of R iterations a sum, an agreement and a softmax, the binarization of votes
    and outputs, and the XNOR operation. So Table 3 runs it; the table's own binarization and BOPs, and its totals of
    XnODR and dynamic routing, leave out the last agreement.
    """
    pairs, rounds = layer.capsin * layer.capsout, layer.iterations
    elements = pairs * layer.dimout + layer.capsout * layer.dimout
    routing = pairs * (4 * layer.dimout + 3) * rounds
    binary = rounds * binarization_flops(elements) + xnor_flops(3 * rounds * pairs)
    return projection_flops(layer) + routing + binary


def dense_flops(widths: Sequence[int]) -> int:
    """Return, by Tables 5 and 9, original FC layers, two a multiply-add, no biases."""
    return 2 * sum(a * b for a, b in pairwise(widths))


def dense_parameters(widths: Sequence[int]) -> int:
    """Return the parameters of Table 10's dense layers, with biases."""
    return sum(a * b + b for a, b in pairwise(widths))


class Convolution(NamedTuple):
    kernel: int
    inputs: int  # channels that each output sees
    outputs: int
    positions: int  # of the output
    added: int = 0  # elements of a shortcut that is added to the output as it is

    @property
    def multiply_adds(self) -> int:
        return self.kernel**2 * self.inputs * self.outputs * self.positions

    @property
    def parameters(self) -> int:
        """Return them with batch norm's scale and shift, without a bias."""
        return self.kernel**2 * self.inputs * self.outputs + 2 * self.outputs


def resnet50(pixels: int, small_stem: bool = False) -> Iterator[Convolution]:
    """Yield Keras' ResNet-50, the v1 form, whose stages have their stride in the first 1x1 (timm has it in the 3x3).

    Args:
        pixels: side of an image of three channels.
        small_stem: section 4.3.2: the first convolution is 3x3 with stride 1, and nothing is pooled behind it.
    """
    side = pixels if small_stem else math.ceil(pixels / 2)
    yield Convolution(3 if small_stem else 7, 3, 64, side**2)
    side = side if small_stem else math.ceil(side / 2)
    channels = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        side = math.ceil(side / 2) if stage else side
        for block in range(blocks):
            if not block:
                yield Convolution(1, channels, 4 * width, side**2)
            yield Convolution(1, channels, width, side**2)
            yield Convolution(3, width, width, side**2)
            channels = 4 * width
            yield Convolution(1, width, channels, side**2, added=channels * side**2 if block else 0)


def mobilenet_v2(pixels: int, small_stem: bool = False) -> Iterator[Convolution]:
    """Yield MobileNet V2; `small_stem` has stride 1 in the first convolution."""
    side = pixels if small_stem else math.ceil(pixels / 2)
    yield Convolution(3, 3, 32, side**2)
    channels = 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, out, blocks, stride in stages:
        for block in range(blocks):
            hidden, before = expansion * channels, side**2
            if expansion > 1:
                yield Convolution(1, channels, hidden, before)
            side = side if block else math.ceil(side / stride)
            yield Convolution(3, 1, hidden, side**2)
            yield Convolution(1, hidden, out, side**2, added=out * side**2 if block else 0)
            channels = out
    yield Convolution(1, channels, 1280, side**2)


def body_parameters(convolutions: Iterator[Convolution], biases: bool = False) -> int:
    """Return the trainable parameters of a body; Keras' ResNet-50 has `biases` in its convolutions."""
    return sum(each.parameters + biases * each.outputs for each in convolutions)


def resnet50_body_flops(pixels: int, small_stem: bool = False) -> int:
    """Return, by Table 4, multiply-adds, and one for each element of a sum with a shortcut that has no convolution."""
    return sum(each.multiply_adds + each.added for each in resnet50(pixels, small_stem))


def mobilenet_v2_body_flops(pixels: int, small_stem: bool = False) -> int:
    """Return, by Table 4, the same, the last mean, and the first convolution a second time, which is no convention
    but fits.
    """
    first, *others = mobilenet_v2(pixels, small_stem)
    last = others[-1]
    return (
        2 * first.multiply_adds
        + sum(each.multiply_adds + each.added for each in others)
        + last.outputs * last.positions
    )
