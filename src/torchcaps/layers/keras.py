"""What Keras does by default and torch does not: 'same' padding, its settings of batch norm, its first weights."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from torchcaps.layers.pointwise import pointwise

EPS, MOMENTUM = 1e-3, 0.01  # of batch norm; Keras calls this a momentum of 0.99
CUT = 0.87962566103423978  # standard deviation of a standard normal that is cut at -2 and 2


class SameConv2d(nn.Conv2d):
    """A convolution that leaves ceil(side / stride) positions: Keras' padding 'same'.

    With a stride the padding depends on the side of the image, and where it is odd the larger half is below and to the
    right: 3x3 with stride 2 pads an even side by 0 and 1, while torch's `padding=1` pads both ends.

    Args:
        in_channels, out_channels, kernel, stride, bias: as in `nn.Conv2d`; kernel and stride are whole numbers.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, bias: bool = False):
        super().__init__(in_channels, out_channels, kernel, stride, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """Map [b, c, h, w] -> [b, out_channels, ceil(h / stride), ceil(w / stride)]."""
        if self.kernel_size == (1, 1):
            return pointwise(input, self.weight, self.bias, self.stride)
        (top, bottom), (left, right) = (
            _same_padding(side, kernel, stride)
            for side, kernel, stride in zip(input.shape[-2:], self.kernel_size, self.stride, strict=True)
        )
        if (top, left) == (bottom, right):
            return F.conv2d(input, self.weight, self.bias, self.stride, (top, left))
        return F.conv2d(F.pad(input, (left, right, top, bottom)), self.weight, self.bias, self.stride)


class SameConvTranspose2d(nn.ConvTranspose2d):
    """The adjoint of `SameConv2d` of an image of stride times the side: Keras' `Conv2DTranspose` with padding 'same'.

    Args:
        in_channels, out_channels, kernel, stride, bias: as in `nn.ConvTranspose2d`; the kernel is at least the stride.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, bias: bool = True):
        super().__init__(in_channels, out_channels, kernel, stride, padding=(kernel - stride) // 2, bias=bias)

    def forward(self, input: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Map [b, c, h, w] -> [b, out_channels, stride * h, stride * w]."""
        height, width = (stride * side for stride, side in zip(self.stride, input.shape[-2:], strict=True))
        return super().forward(input)[..., :height, :width]


def normal_(weight: Tensor, variance: float) -> None:
    """Fill `weight` from a normal cut at two of its deviations, which has this variance when it is cut."""
    deviation = math.sqrt(variance) / CUT
    nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)


def glorot_normal_(weight: Tensor, fan_in: int, fan_out: int) -> None:
    """Draw weights by Glorot and Bengio 2010 as Keras' `glorot_normal`: variance 2 / (fan_in + fan_out)."""
    normal_(weight, 2 / (fan_in + fan_out))


def glorot_uniform_(conv: nn.Conv2d) -> None:
    """Draw what Keras' convolutions start with unless they are told otherwise: Glorot's variance, uniform, and no
    bias.
    """
    nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def he_normal_(layer: nn.Conv2d | nn.Linear) -> None:
    """Draw weights by He et al. 2015 as Keras' `he_normal`: variance 2 / fan_in; and no bias."""
    normal_(layer.weight, 2 / layer.weight[0].numel())
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return how many zeros stand before and after `side` positions."""
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2
