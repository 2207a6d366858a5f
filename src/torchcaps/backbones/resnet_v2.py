"""Residual networks of identity mappings (He, Zhang, Ren and Sun, ECCV 2016; "ResNet-v2") for small images.

Batch norm and ReLU stand before each convolution, so that a block adds to its input and nothing changes the sum. As in
the code of Zhao et al. 2020, all is as Keras has it: 'same' padding, batch norm with momentum 0.99 and eps 1e-3.

Their network differs from He's in one place: a projection, where the shape changes, sees the block's raw input.
"""

from __future__ import annotations

from torch import Tensor, nn

from torchcaps.backbones.interface import Backbone, Window
from torchcaps.layers.keras import EPS, MOMENTUM, SameConv2d


class PreactivatedBlock(nn.Module):
    """x + f(x), where f is batch norm, ReLU and a 3x3 convolution, twice (He et al. 2016, figure 4e).

    Where the stride is not 1 or the channels change, a 1x1 convolution of x takes the place of x.

    Args:
        in_channels, channels: of the input, and of the output.
        stride: of the first convolution.
        activated: whether the path past f starts from the output of the first ReLU in place of x: the two then split
            after it.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1, activated: bool = False):
        super().__init__()
        self.activated = activated
        self.norm1 = nn.BatchNorm2d(in_channels, EPS, MOMENTUM)
        self.conv1 = SameConv2d(in_channels, channels, 3, stride)
        self.norm2 = nn.BatchNorm2d(channels, EPS, MOMENTUM)
        self.conv2 = SameConv2d(channels, channels, 3)
        self.shortcut: SameConv2d | None = None
        if stride != 1 or in_channels != channels:
            self.shortcut = SameConv2d(in_channels, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = self.norm1(x).relu()
        hidden = self.norm2(self.conv1(active)).relu()
        past = active if self.activated else x
        return self.conv2(hidden) + (past if self.shortcut is None else self.shortcut(past))


class ResNetV2(Backbone):
    """A 3x3 convolution, stages of blocks, batch norm and ReLU; each stage after the first halves the side.

    No convolution has a bias; all start as He et al. 2015 have it (normal, by the fan in). With (8, 8, 8) blocks and
    a width of 16 it has 757,712 parameters for three colours. The batch norm and ReLU after the first convolution are
    those of the first block, whichever path sees them, so that no setting has more parameters than another.

    Args:
        in_channels: of the images.
        blocks: of each stage, at least one stage and one block.
        width: channels of the first stage, at least 1; each further stage has twice as many as the one before.
        activated_stem: whether batch norm and ReLU follow the first convolution before the first block splits, so that
            its identity sees them too (He et al. 2016, section 4.1, and the code of Zhao et al. 2020).
        activated_projection: whether a projection sees its block's first ReLU, as He et al. have it; in the code of
            Zhao et al. it sees the raw input of the block.

    Raises:
        ValueError: for blocks or a width below 1.
    """

    def __init__(
        self,
        in_channels: int,
        blocks: tuple[int, ...] = (8, 8, 8),
        width: int = 16,
        activated_stem: bool = True,
        activated_projection: bool = False,
    ):
        super().__init__()
        if not blocks or min(blocks) < 1:
            raise ValueError(f"blocks are {blocks}; there must be a stage, and each of at least 1 block")
        if width < 1:
            raise ValueError(f"width is {width}; it must be at least 1")
        self.stem = SameConv2d(in_channels, width, 3)
        channels, stages = width, []
        for stage, count in enumerate(blocks):
            for block in range(count):
                first, projects = not stages, bool(stage) and not block
                activated = (first and activated_stem) or (projects and activated_projection)
                stages.append(PreactivatedBlock(channels, width << stage, 2 if projects else 1, activated))
                channels = width << stage
        self.blocks = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels, EPS, MOMENTUM)
        self.channels = channels
        self.windows = (Window(3, 1, 1),) * 2 + (Window(3, 2, 1),) * (len(blocks) - 1)
        for module in self.modules():
            if isinstance(module, SameConv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map images [b, c, h, w] -> features [b, channels, h', w']; each stage but the first has rounded h / 2 up."""
        return self.norm(self.blocks(self.stem(images))).relu()
