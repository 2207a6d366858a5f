"""Residual networks of basic blocks (He, Zhang, Ren and Sun, CVPR 2016) for small images: the first convolution is 3x3
and nothing is pooled before the blocks."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from torchcaps.backbones.interface import Backbone, Window
from torchcaps.layers.pointwise import PointwiseConv2d


class Stage(NamedTuple):
    """Blocks of one width; the first one has the stride."""

    channels: int
    blocks: int
    stride: int = 1


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each with batch norm, and the sum with the input before the last ReLU.

    Where the stride is not 1 or the channels change, the input passes a 1x1 convolution and batch norm.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(PointwiseConv2d(in_channels, channels, stride), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm1(self.conv1(x)).relu()
        return (self.norm2(self.conv2(hidden)) + self.shortcut(x)).relu()


class ResNetBackbone(Backbone):
    """A 3x3 convolution with batch norm and ReLU, as wide as the first stage, then the stages.

    Convolutions have no bias and start as He et al. have it (normal, by the fan out).

    Args:
        in_channels: of the images.
        stages: at least one, each of at least one block and one channel.
    """

    def __init__(self, in_channels: int, stages: tuple[Stage, ...]):
        super().__init__()
        if not stages or min(min(stage) for stage in stages) < 1:
            raise ValueError(f"stages are {stages}; there must be one, and channels, blocks and strides at least 1")
        width = stages[0].channels
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        blocks = []
        for stage in stages:
            for n in range(stage.blocks):
                blocks.append(BasicBlock(width, stage.channels, stage.stride if n == 0 else 1))
                width = stage.channels
        self.blocks = nn.Sequential(*blocks)
        self.channels = width
        self.windows = (Window(3, 1, 1), *(Window(3, stage.stride, 1) for stage in stages))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(self.stem(images))


def capsule_resnet(in_channels: int, channels: int = 128) -> ResNetBackbone:
    """Return the ResNet backbone of Tsai et al. (ICLR 2020, appendix A.1): 32x32 pixels to 16x16 positions of
    `channels`.

    Three blocks of half the channels, then four with stride 2 in the first one. The text gives all four the stride, but
    names 16x16 positions. 1,340,224 parameters for three colours and 128 channels.
    """
    if channels < 2 or channels % 2:
        raise ValueError(f"channels is {channels}; the ResNet backbone needs an even number, at least 2")
    return ResNetBackbone(in_channels, (Stage(channels // 2, 3), Stage(channels, 4, stride=2)))
