"""Primary capsules: a convolution whose channels are grouped into poses."""

from __future__ import annotations

from torch import Tensor, nn

from torchcaps.capsules import Capsules, squash
from torchcaps.layers.binarize import XnorConv2d
from torchcaps.names import whole
from torchcaps.votes import Threshold


def count_capsules(in_channels: int, capsules: int, pose: int) -> tuple[int, int, int]:
    """Return the three as they are; ValueError unless each is a whole number, at least 1."""
    return whole("in_channels", in_channels), whole("capsules", capsules), whole("pose", pose)


class PrimaryCapsules(nn.Module):
    """Convolution, channels grouped into capsules, squash (Sabour et al. 2017, section 4).

    Args:
        in_channels: of the features.
        capsules: capsule types per position.
        pose: elements of a pose; the convolution has capsules * pose channels, a capsule's elements side by side.
        kernel, stride: of the convolution, without padding.
        pooled: take the mean over the positions before the squash.
        xnorized: the threshold of an xnorized convolution (Sun et al. 2023, appendix B); None: it is not xnorized.
    """

    def __init__(
        self,
        in_channels: int,
        capsules: int,
        pose: int,
        kernel: int = 9,
        stride: int = 2,
        pooled: bool = False,
        xnorized: Threshold | None = None,
    ):
        super().__init__()
        in_channels, capsules, pose = count_capsules(in_channels, capsules, pose)
        self.pose, self.pooled = pose, pooled
        if xnorized is None:
            self.conv: nn.Conv2d = nn.Conv2d(in_channels, capsules * pose, kernel, stride)
        else:
            self.conv = XnorConv2d(in_channels, capsules * pose, kernel, stride, threshold=xnorized)

    def forward(self, features: Tensor) -> Capsules:
        """Map [b, c, h, w] -> poses [b, h', w', i, d], or [b, i, d] where they are pooled.

        They have no activations: a pose's length stands for it.
        """
        maps = self.conv(features)
        last = maps.mean((2, 3)) if self.pooled else maps.movedim(1, -1)  # [b, h', w', (i d)]
        return Capsules(squash(last.unflatten(-1, (-1, self.pose))))

    def extra_repr(self) -> str:
        return f"poses of {self.pose}" + ", pooled" * self.pooled


class PrimaryPoses(nn.Module):
    """Convolution, channels grouped into poses, and no squash: matrix poses, or those of capsules without activation.

    Args:
        in_channels, capsules, pose, kernel, stride: as in `PrimaryCapsules`.
        bias: whether the poses have one.
        layer_norm: normalise each pose; one affine norm serves all (Tsai et al. 2020, section 2).
        activations: a second convolution of the same window, with a sigmoid, gives each capsule one (Hinton et al.
            2018, section 4).
    """

    def __init__(
        self,
        in_channels: int,
        capsules: int,
        pose: int,
        kernel: int = 1,
        stride: int = 1,
        bias: bool = False,
        layer_norm: bool = False,
        activations: bool = False,
    ):
        super().__init__()
        in_channels, capsules, pose = count_capsules(in_channels, capsules, pose)
        self.pose = pose
        self.conv = nn.Conv2d(in_channels, capsules * pose, kernel, stride, bias=bias)
        self.norm = nn.LayerNorm(pose) if layer_norm else nn.Identity()
        self.activation = nn.Conv2d(in_channels, capsules, kernel, stride) if activations else None

    def forward(self, features: Tensor) -> Capsules:
        """Map [b, c, h, w] -> poses [b, h', w', i, d] and activations [b, h', w', i] in (0, 1), or None."""
        poses = self.norm(self.conv(features).movedim(1, -1).unflatten(-1, (-1, self.pose)))
        if self.activation is None:
            return Capsules(poses)
        return Capsules(poses, self.activation(features).movedim(1, -1).sigmoid())

    def extra_repr(self) -> str:
        return f"poses of {self.pose}"
