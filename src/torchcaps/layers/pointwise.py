"""Convolutions of single pixels, whose stride leaves pixels out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

FEWEST = 16  # channels of a vector of AVX-512; oneDNN errs below those of a vector, 8 with AVX2


def pointwise(input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int]) -> Tensor:
    """Map [b, c, h, w] by weights [out, c, 1, 1] -> [b, out, ceil(h / stride), ceil(w / stride)].

    Of few channels, pixels are left out first, which is the same. oneDNN's own gradient of the weights writes beyond
    its memory there where channels lie last: it is wrong, never ends, or ends the process
    (github.com/uxlfoundation/oneDNN/issues/6035, in torch 2.15 as well).
    """
    if max(stride) > 1 and weight.shape[1] < FEWEST:
        return F.conv2d(input[..., :: stride[0], :: stride[1]], weight, bias)
    return F.conv2d(input, weight, bias, tuple(stride))


class PointwiseConv2d(nn.Conv2d):
    """A convolution of single pixels without bias, see `pointwise`.

    Args:
        in_channels, out_channels, stride: as in `nn.Conv2d`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Map [b, c, h, w] -> [b, out_channels, ceil(h / stride), ceil(w / stride)]."""
        return pointwise(input, self.weight, self.bias, self.stride)
