"""Convolutions of single pixels with a stride: oneDNN's gradient of their weights errs where channels are few."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchcaps.backbones.resnet import ResNetBackbone, Stage
from torchcaps.backbones.resnet_v2 import ResNetV2
from torchcaps.layers.keras import SameConv2d
from torchcaps.layers.pointwise import PointwiseConv2d


@pytest.mark.parametrize("channels", [1, 3, 4, 7, 8, 12, 16])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("form", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("build", [PointwiseConv2d, lambda c, out, stride: SameConv2d(c, out, 1, stride)])
def test_values_and_gradients_are_those_of_the_convolution(build, form, stride, channels):
    torch.manual_seed(0)
    conv, x = build(channels, 8, stride), torch.randn(16, channels, 9, 10)
    conv.to(memory_format=form)
    near = x.contiguous(memory_format=form).requires_grad_()
    out = conv(near)
    upstream = torch.randn_like(out)
    found = torch.autograd.grad(out, (near, conv.weight), upstream)

    exact, weight = x.double().requires_grad_(), conv.weight.detach().double().contiguous().requires_grad_()
    wanted = F.conv2d(exact, weight, stride=stride)
    gradients = torch.autograd.grad(wanted, (exact, weight), upstream.double().contiguous())
    for a, b in zip((out, *found), (wanted, *gradients), strict=True):
        assert a.shape == b.shape and (a - b).abs().max() < 1e-5 * b.abs().max()


@pytest.mark.parametrize("backbone", [ResNetBackbone(3, (Stage(4, 1), Stage(8, 1, 2))), ResNetV2(3, (1, 1), 4)])
def test_the_narrow_residual_networks_have_no_other(backbone):
    strided = [
        x for x in backbone.modules() if isinstance(x, nn.Conv2d) and x.kernel_size == (1, 1) and x.stride != (1, 1)
    ]
    assert strided and all(isinstance(x, PointwiseConv2d | SameConv2d) for x in strided)
