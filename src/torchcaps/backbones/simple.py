"""The simple backbone of Tsai et al. (ICLR 2020): one convolution and a ReLU."""

from __future__ import annotations

from torch import Tensor, nn

from torchcaps.backbones.interface import Backbone, Window

HALVING = Window(3, 2, 1)  # a side becomes its half, rounded up


class SimpleBackbone(Backbone):
    """Convolution, batch norm where asked for, ReLU (Tables 4 to 11).

    Args:
        in_channels: of the images.
        channels: of the features, at least 1.
        window: of the convolution.
        batch_norm: between the two, as in Tables 6 and 7.
    """

    def __init__(self, in_channels: int, channels: int, window: Window = HALVING, batch_norm: bool = False):
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels is {channels}; it must be at least 1")
        self.channels, self.windows = channels, (window,)
        self.conv = nn.Conv2d(in_channels, channels, window.kernel, window.stride, window.padding)
        self.norm = nn.BatchNorm2d(channels) if batch_norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images)).relu()
