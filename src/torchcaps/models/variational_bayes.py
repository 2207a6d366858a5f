"""The networks of Ribeiro, Leontidis and Kollias, "Capsule routing via variational Bayes" (AAAI 2020), by their widths.

"variational-bayes-64-8-16-16" has 64 channels, 8 types of primary capsules, 16 and 16 of convolutional ones. With
`convs` 0 they are those of the released code: 68,714 parameters for smallNORB's two channels and five classes, and
95,572 of "64-16-16-16" for one channel and ten classes. For CIFAR-10 two more 3x3 convolutions (`convs` 2) give
145,588, 172,756 and 322,836 parameters, the 145 K, 172 K and 323 K that others print: that is inferred from the three
matches, and was not read in the paper.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from torchcaps.backbones.interface import Backbone, Window, count_positions
from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, Coordinates, Transform
from torchcaps.models.network import ActivationHead, CapsuleNetwork, placed_transform
from torchcaps.models.registry import register_variant
from torchcaps.names import check_choice

PLACEMENTS = {"released": Coordinates(start=1.0, scale=0.1), "hinton": Coordinates()}


class Stem(Backbone):
    """A 5x5 convolution with stride 2, and `convs` 3x3 ones, padded by 1, without bias, with batch norm and ReLU."""

    def __init__(self, in_channels: int, channels: int, convs: int, padding: int):
        super().__init__()
        windows = [Window(5, 2, padding), *[Window(3, 1, 1)] * convs]
        layers: list[nn.Module] = []
        for window in windows:
            layers += [nn.Conv2d(in_channels, channels, *window, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
            in_channels = channels
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)  # as released
        self.channels, self.windows = channels, tuple(windows)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class NormedPrimary(nn.Module):
    """Primary capsules by 1x1 convolutions without bias: poses with batch norm by type, activations with batch norm.

    Args:
        in_channels: of the features.
        capsules, pose: types at a position, and elements of a pose.
    """

    def __init__(self, in_channels: int, capsules: int, pose: int):
        super().__init__()
        self.pose = pose
        self.conv = nn.Conv2d(in_channels, capsules * pose, 1, bias=False)
        self.norm = nn.BatchNorm3d(capsules)
        self.activation = nn.Conv2d(in_channels, capsules, 1, bias=False)
        self.activation_norm = nn.BatchNorm2d(capsules)
        for conv in (self.conv, self.activation):
            nn.init.xavier_uniform_(conv.weight)  # as released

    def forward(self, features: Tensor) -> Capsules:
        """Map [b, c, h, w] -> poses [b, h, w, i, d] and activations [b, h, w, i]."""
        poses = self.norm(self.conv(features).unflatten(1, (-1, self.pose)))  # [b, i, d, h, w]
        active = self.activation_norm(self.activation(features)).sigmoid()
        return Capsules(poses.permute(0, 3, 4, 1, 2), active.movedim(1, -1))


def variational_bayes(
    num_classes: int,
    in_channels: int = 1,
    image_size: tuple[int, int] = (32, 32),
    channels: int = 64,
    primary: int = 8,
    capsules: tuple[int, ...] = (16, 16),
    convs: int = 0,
    pose: int = 16,
    iterations: int = 3,
    coordinates: bool = True,
    placement: Literal["released", "hinton"] = "released",
    stem_padding: int = 0,
) -> CapsuleNetwork:
    """Return the network: stem -> 1x1 primary capsules -> convolutional capsules, 3x3, stride 2 and then 1 -> class
    capsules.

    All positions share the transforms of the class layer, whose votes are told where a child stands.

    Args:
        num_classes, in_channels, image_size: of the data; image_size is (height, width).
        channels: of the stem.
        primary, capsules: types at a position of the primary and of each convolutional layer.
        convs: further 3x3 convolutions of the stem.
        pose: elements of a pose, a square number.
        iterations: of the routing, at least 1.
        coordinates: whether votes for the classes know the place of their child.
        placement: what they know of row or column i of n: "released" (i + 1) / (10 n), "hinton" (i + 1/2) / n.
        stem_padding: pixels around an image, for the first convolution: with 0, images of 32 pixels leave 4x4 places
            below the classes, with 2 they leave 5x5.

    Raises:
        ValueError: for images that are too small, for sizes below 1 (a padding below 0), another placement, and one
            without coordinates.
    """
    check_choice("placement", placement, tuple(PLACEMENTS))
    if not coordinates and placement != "released":
        raise ValueError(f"placement is {placement!r}, but coordinates are False, so that votes know no place")
    if min(channels, primary, *capsules) < 1 or min(convs, stem_padding) < 0 or not capsules:
        raise ValueError(
            f"channels is {channels}, primary {primary}, capsules {capsules}, convs {convs} and stem_padding "
            f"{stem_padding}; at least 1, 1, one layer of 1, 0 and 0"
        )
    stem = Stem(in_channels, channels, convs, stem_padding)
    strides = (2, *[1] * (len(capsules) - 1))
    height, width = count_positions(image_size, [*stem.windows, *(Window(3, stride) for stride in strides)])
    below = (primary, *capsules)
    transforms: list[Transform] = [
        ConvTransform(a, b, pose, pose, 3, stride, 0, matrix=True)
        for a, b, stride in zip(below, capsules, strides, strict=False)
    ]
    told = PLACEMENTS[placement] if coordinates else False
    transforms.append(placed_transform(capsules[-1], height * width, num_classes, pose, True, "shared", told))
    for transform in transforms:
        xavier(transform)
    stack = CapsuleStack([CapsuleLayer(each, "variational-bayes") for each in transforms], iterations)
    return CapsuleNetwork(stem, NormedPrimary(channels, primary, pose), stack, ActivationHead())


@torch.no_grad()
def xavier(transform: Transform) -> None:
    """Draw weights uniformly by Glorot, as released: types times places of the window times 16 count as fans."""
    parents, *window, columns, _ = transform.shape
    elements = transform.rows * columns
    places = math.prod(window[:-1])
    fans = (window[-1] + parents) * places * elements
    nn.init.uniform_(transform.weight, -math.sqrt(6 / fans), math.sqrt(6 / fans))


register_variant("variational-bayes-64-8-16-16", variational_bayes)
register_variant("variational-bayes-64-16-16-16", variational_bayes, primary=16)
register_variant("variational-bayes-64-8-16-16-cifar10", variational_bayes, num_classes=10, in_channels=3, convs=2)
register_variant(
    "variational-bayes-64-16-16-16-cifar10", variational_bayes, num_classes=10, in_channels=3, primary=16, convs=2
)
register_variant(
    "variational-bayes-64-16-32-32-cifar10",
    variational_bayes,
    num_classes=10,
    in_channels=3,
    primary=16,
    capsules=(32, 32),
    convs=2,
)
