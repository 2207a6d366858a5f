"""The residual network of FM agreement with neurons for capsules: a control of ours, not of Zhao et al. 2020."""

from __future__ import annotations

from torch import nn

from torchcaps.backbones.interface import Window, count_positions
from torchcaps.backbones.resnet_v2 import ResNetV2
from torchcaps.layers.keras import EPS, MOMENTUM, SameConv2d
from torchcaps.models.images import AFFNIST
from torchcaps.models.plain import PlainNetwork
from torchcaps.models.registry import register_variant


def residual_cnn(
    num_classes: int,
    in_channels: int = 1,
    image_size: tuple[int, int] = (40, 40),
    blocks: tuple[int, ...] = (1, 1, 1),
    width: int = 16,
    channels: int = 64,
    activated_stem: bool = True,
    activated_projection: bool = False,
) -> PlainNetwork:
    """Return `fm_resnet` with neurons for capsules: the control of equal parameters that its affine generalisation
    is held to.

    The same backbone; in place of the primary capsules a 5x5 convolution with stride 2, batch norm and ReLU; in place
    of the class capsules a linear layer of all positions. 195,450 parameters for 40x40x1 and 10 classes, where
    `fm-resnet-affnist` has 195,376 without its decoder. Not in Zhao et al. 2020.

    Args:
        num_classes, in_channels, image_size: of the data; image_size is (height, width).
        blocks, width, activated_stem, activated_projection: see `ResNetV2`.
        channels: of the 5x5 convolution; 64 are 4 types of primary capsules with 16 elements.

    Raises:
        ValueError: for sizes below 1.
    """
    backbone, last = ResNetV2(in_channels, blocks, width, activated_stem, activated_projection), Window(5, 2, 2)
    rows, columns = count_positions(image_size, (*backbone.windows, last))
    conv = SameConv2d(backbone.channels, channels, last.kernel, last.stride)
    features = nn.Sequential(backbone, conv, nn.BatchNorm2d(channels, EPS, MOMENTUM), nn.ReLU())
    return PlainNetwork(features, nn.Sequential(nn.Flatten(), nn.Linear(channels * rows * columns, num_classes)))


register_variant("cnn-affnist", residual_cnn, **AFFNIST)
