"""Primary capsules: a convolution whose channels are grouped into poses."""

from __future__ import annotations

from torch import Tensor, nn

from torchcaps.capsules import Capsules, squash


class PrimaryCaps(nn.Module):
    """Convolution, channels grouped into capsules, squash (Sabour et al. 2017, section 4).

    Args:
        in_channels: of the features.
        capsules: capsule types per position.
        pose: elements of a pose; the convolution has capsules * pose channels, a capsule's elements side by side.
        kernel, stride: of the convolution, without padding.
    """

    def __init__(self, in_channels: int, capsules: int, pose: int, kernel: int = 9, stride: int = 2):
        super().__init__()
        self.pose = pose
        self.conv = nn.Conv2d(in_channels, capsules * pose, kernel, stride)

    def forward(self, features: Tensor) -> Capsules:
        """[b, c, h, w] -> poses [b, h', w', i, d], without activations: a pose's length stands for it."""
        maps = self.conv(features).movedim(1, -1)  # [b, h', w', (i d)]
        return Capsules(squash(maps.unflatten(-1, (-1, self.pose))))
