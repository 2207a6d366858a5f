"""The xnorized convolution (Sun et al. 2023, appendix B, Eq. 20; Rastegari et al. 2016)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from torchcaps.capsules import midpoint, sign
from torchcaps.names import check_choice
from torchcaps.votes.binary import THRESHOLDS, Threshold


class XnorConv2d(nn.Conv2d):
    """I * W ~ (B_I * B_W) A_I alpha_W: a convolution of signs, scaled per place and per filter.

    B are signs, 0 counting as -1, with the straight-through gradient of `sign`. alpha_W is the mean of |W| over a
    filter. A_I is the mean of |I| over the channels, averaged over the window. No gradient flows through the scales.
    What is outside the image adds nothing to the sum of signs and counts as 0 in A_I. The bias, which is not in Eq. 20,
    is added at the end.

    Args:
        in_channels, out_channels, kernel, stride, padding, bias: as in `torch.nn.Conv2d`.
        threshold: "zero", or "midpoint" between the smallest and the largest value of each image and of each filter
            (appendix A).

    Raises:
        ValueError: for an unknown threshold.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        bias: bool = True,
        threshold: Threshold = "zero",
    ):
        super().__init__(in_channels, out_channels, kernel, stride, padding, bias=bias)
        check_choice("threshold", threshold, THRESHOLDS)
        self.threshold: Threshold = threshold

    def forward(self, input: Tensor) -> Tensor:
        """Map [b, c, h, w] -> [b, out, h', w']."""
        signs, scale = self.binary_weight()
        return xnor_convolve(input, signs, scale, self.bias, self.stride, self.padding, self.threshold)

    def binary_weight(self) -> tuple[Tensor, Tensor]:
        """Return the signs of the weight, -1 and 1 in its shape, and alpha_W, [out, 1, 1]."""
        return _signs(self.weight, self.threshold), self.weight.detach().abs().mean((1, 2, 3))[:, None, None]


def xnor_convolve(
    input: Tensor,
    signs: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: str | tuple[int, ...],
    threshold: Threshold,
) -> Tensor:
    """Return Eq. 20, [b, out, h', w'], of images [b, c, h, w] and filters as `XnorConv2d.binary_weight` gives them."""
    kernel = signs.shape[-2:]
    window = input.new_ones(1, 1, *kernel) / (kernel[0] * kernel[1])
    strength = input.detach().abs().mean(1, keepdim=True)  # M_I [b, 1, h, w]
    image_scale = F.conv2d(strength, window, stride=stride, padding=padding)  # A_I [b, 1, h', w']
    counts = F.conv2d(_signs(input, threshold), signs, stride=stride, padding=padding)
    out = counts * image_scale * scale
    return out if bias is None else out + bias[:, None, None]


def _signs(x: Tensor, threshold: Threshold) -> Tensor:
    return sign(x, midpoint(x, (1, 2, 3)) if threshold == "midpoint" else None)
