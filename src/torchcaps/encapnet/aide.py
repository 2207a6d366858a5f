"""The aide of EncapNet's capsule convolution (Li et al. 2018, Eq. 6): a dense convolution with a large kernel.

On a CPU torch's convolution is slow where the map that comes out is small and the weights are many: it computes a row
of places at a time, and a row of four fills a quarter of a tile. There the patches of all places are the rows of one
matrix, and the convolution is one product with the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchcaps.capsules import transformed

NARROW = 6  # places of a row that comes out, at most
LARGE = 1 << 21  # weights, at least, from which on a product was faster in bf16 and float32 (`benchmarks/encapnet.py`)


class DenseConv2d(nn.Conv2d):
    """A dense convolution that is one product of matrices where that is faster: on a CPU, to a small map by many
    weights.

    The patches are kept for the backward pass: `kernel` squared times the places that come out times the channels that
    go in. A graph that is compiled or exported has the convolution.

    Args: those of `torch.nn.Conv2d`, of one group, padded by zeros, without a dilation.
    """

    product = True  #: whether a product may stand in; False: always torch's convolution

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        assert (self.groups, self.dilation, self.padding_mode) == (1, (1, 1), "zeros"), "see the docstring"

    def forward(self, input: Tensor) -> Tensor:
        """Map [b, c, h, w] -> [b, c', h', w']."""
        return self._convolve(input, self.weight)

    def _convolve(self, input: Tensor, weight: Tensor) -> Tensor:
        if self.product and self.prefers_product(input):
            return _multiply(input, weight, self.bias, self.stride, self.padding)  # pyright: ignore[reportArgumentType]
        return F.conv2d(input, weight, self.bias, self.stride, self.padding)

    def prefers_product(self, input: Tensor) -> bool:
        """Return whether the product is the faster form of this convolution of `input` [b, c, h, w]."""
        if input.device.type != "cpu" or input.ndim != 4 or torch.compiler.is_compiling():
            return False
        row = (input.shape[3] + 2 * int(self.padding[1]) - self.kernel_size[1]) // self.stride[1] + 1
        return 0 < row <= NARROW and self.weight.numel() >= LARGE


class AideConv2d(DenseConv2d):
    """A convolution to each capsule from the channels of all other capsules (the complement of N_j in Eq. 6).

    The weight is that of a dense convolution, as in the authors' code, whose aide sees all channels. What joins a
    capsule with itself is kept at zero in place, which touches one in `capsules` of the weights; a copy of all of them
    with a mask took a good part of the time of an image alone. It has no gradient.

    Args:
        capsules: types per position, at least 2.
        in_pose, out_pose: elements of a pose.
        kernel, stride: of the convolution, padded so that a stride of 1 keeps the size; the kernel is odd.
        bias: whether it has one.
    """

    mask: Tensor

    def __init__(self, capsules: int, in_pose: int, out_pose: int, kernel: int, stride: int, bias: bool = True):
        super().__init__(capsules * in_pose, capsules * out_pose, kernel, stride, padding=kernel // 2, bias=bias)
        self.capsules, self.in_pose, self.out_pose = capsules, in_pose, out_pose
        self.register_buffer("mask", self._others(), persistent=False)

    def _others(self) -> Tensor:
        others = 1 - torch.eye(self.capsules, dtype=self.weight.dtype, device=self.weight.device)
        return others.repeat_interleave(self.out_pose, 0).repeat_interleave(self.in_pose, 1)[:, :, None, None]

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Move the layer as torch does, and make its mask anew: `to_empty` leaves any numbers, and no file has it."""
        moved = super()._apply(*args, **kwargs)
        self.mask = self._others()
        return moved

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Take weights as torch does, and make the mask anew where `assign=True` has brought them to another device."""
        super()._load_from_state_dict(*args, **kwargs)
        if self.mask.device != self.weight.device:
            self.mask = self._others()

    def forward(self, input: Tensor) -> Tensor:
        """Map [b, (g d), h, w] -> [b, (g d'), h', w']."""
        return self._convolve(input, self._masked())

    def _masked(self) -> Tensor:
        """Return the weight, its own blocks being zero: by a mask in a graph, and where a caller lent another
        tensor.
        """
        weight = self.weight
        if (
            torch.compiler.is_compiling()
            or transformed()
            or not isinstance(weight, nn.Parameter)
            or weight.is_inference()
        ):
            return weight * self.mask
        blocks = weight.data.unflatten(1, (self.capsules, -1)).unflatten(0, (self.capsules, -1))  # [g, d', g, d, k, k]
        blocks.diagonal(0, 0, 2).zero_()
        return _OthersGradient.apply(weight, self.mask)  # pyright: ignore[reportReturnType]


class _OthersGradient(torch.autograd.Function):
    """A weight whose own blocks are zero, as it is; its gradient without them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, mask: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.mask = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.mask, None


def _multiply(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """Return the convolution of `input` [b, c, h, w] and `weight` [c', c, k, l] as a product, in its layout."""
    last = input.stride(1) == 1  # channels last; `is_contiguous` cannot be asked under vmap
    if torch.is_autocast_enabled("cpu") and input.dtype != torch.float64:
        # here, before there are patches of it, which are many times as many
        input = input.to(torch.get_autocast_dtype("cpu"))
    flat = _Patches.apply(input.movedim(1, -1), weight.shape[2:], stride, padding).flatten(3)  # pyright: ignore
    maps = F.linear(flat, weight.movedim(1, -1).flatten(1), bias).movedim(-1, 1)
    return maps if last else maps.contiguous()


class _Patches(torch.autograd.Function):
    """Maps [b, h, w, c] -> what a kernel sees at each place, [b, h', w', k, l, c]; torch's gradient of it is slow."""

    generate_vmap_rule = True

    @staticmethod
    def forward(maps: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Tensor:
        padded = F.pad(maps, (0, 0, padding[1], padding[1], padding[0], padding[0]))
        return padded.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1]).movedim(3, -1).contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any, Any, Any], output: Tensor) -> None:
        maps, _, ctx.stride, ctx.padding = inputs
        ctx.shape = maps.shape

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients  # [b, h', w', k, l, c]
        rows, columns, *kernel = gradient.shape[1:5]
        (_, height, width, _), (down, right), (above, left) = ctx.shape, ctx.stride, ctx.padding
        sums = gradient.new_zeros(
            (len(gradient), height + 2 * above, width + 2 * left, gradient.shape[-1]),
            dtype=torch.promote_types(gradient.dtype, torch.float32),
        )
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                seen = sums[:, i : i + down * rows : down, j : j + right * columns : right]
                seen.add_(gradient[:, :, :, i, j])
        inner = sums[:, above : above + height, left : left + width]
        return inner.to(gradient.dtype), None, None, None
