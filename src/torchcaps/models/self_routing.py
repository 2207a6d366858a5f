"""The networks of Hahn, Pyeon and Kim, "Self-routing capsule networks" (NeurIPS 2019), on ResNet-20; average pooling.

Sizes are those of the authors' poster and code; their parameters were counted: 931,664 with one routed layer, 3,187,536
with two, 269,722 with average pooling. Class capsules have no pose: their activations add up to 1 and are the scores.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchcaps.backbones.interface import Backbone, Window, count_positions
from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, LinearTransform, Transform
from torchcaps.models.images import CIFAR10
from torchcaps.models.network import ActivationHead, CapsuleNetwork
from torchcaps.models.plain import PlainNetwork, pool
from torchcaps.models.registry import register_variant

WIDTHS = (16, 32, 64)  # of ResNet-20


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm; the shortcut drops every other position and pads channels (option A)."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.stride, self.more = stride, channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[:, :, :: self.stride, :: self.stride]
        before = self.more // 2
        shortcut = F.pad(shortcut, (0, 0, 0, 0, before, self.more - before))
        return (self.norm2(self.conv2(self.norm1(self.conv1(x)).relu())) + shortcut).relu()


class ResNet20(Backbone):
    """He et al. 2016, section 4.2: a 3x3 convolution, three stages of three blocks, of 16, 32 and 64 channels.

    Args:
        in_channels: of the images.
        width: of the first stage.
    """

    def __init__(self, in_channels: int, width: int = WIDTHS[0]):
        super().__init__()
        if width < 1:
            raise ValueError(f"width is {width}; it must be at least 1")
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
        for stage in range(3):
            for block in range(3):
                out = width << stage
                layers.append(Block(channels, out, 2 if stage and not block else 1))
                channels = out
        self.layers = nn.Sequential(*layers)
        self.channels = channels
        self.windows = (Window(3, 1, 1), Window(3, 2, 1), Window(3, 2, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)  # as released

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class NormedPoses(nn.Module):
    """Primary capsules by 3x3 convolutions without bias: poses with batch norm, activations with that and a sigmoid.

    Args:
        in_channels: of the features.
        capsules, pose: types at a position, and elements of a pose.
    """

    def __init__(self, in_channels: int, capsules: int, pose: int):
        super().__init__()
        self.pose = pose
        self.conv = nn.Conv2d(in_channels, capsules * pose, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(capsules * pose)
        self.activation = nn.Conv2d(in_channels, capsules, 3, 1, 1, bias=False)
        self.activation_norm = nn.BatchNorm2d(capsules)
        for conv in (self.conv, self.activation):
            nn.init.kaiming_uniform_(conv.weight)  # as released

    def forward(self, features: Tensor) -> Capsules:
        """Map [b, c, h, w] -> poses [b, h, w, i, d] and activations [b, h, w, i]."""
        poses = self.norm(self.conv(features)).movedim(1, -1).unflatten(-1, (-1, self.pose))
        active = self.activation_norm(self.activation(features)).movedim(1, -1).sigmoid()
        return Capsules(poses, active)


class NormedTransform(LinearTransform):
    """A linear transform of children whose poses have batch norm, by element of each type, before their votes.

    The last element of each vote starts from zero. Args as in `LinearTransform`, and

    Args:
        types: of children at a position; None: their poses are taken as they are.
    """

    def __init__(self, children: int, parents: int, child_pose: int, parent_pose: int, types: int | None = None):
        super().__init__(children, parents, child_pose, parent_pose)
        self.norm = None if types is None else nn.BatchNorm1d(types * child_pose)
        self.makes = None if types is not None else self.makes

    def forward(self, children: Capsules):
        if self.norm is not None:
            flat = children.poses.flatten(-2)  # [b, h, w, (i d)]
            normed = self.norm(flat.flatten(0, -2)).view_as(flat)
            children = children._replace(poses=normed.view_as(children.poses))
        return super().forward(children)


@torch.no_grad()
def uniform_start(transform: Transform) -> None:
    """Start the logits, the last element of each vote, from zero; what else there is uniformly by He et al., as
    released: the fan counts a child's elements times those of all parents' poses.
    """
    parents, *_, columns, out = transform.shape
    fan = parents * max(out - 1, 1) * columns
    bound = (6 / fan) ** 0.5
    nn.init.uniform_(transform.weight, -bound, bound)
    transform.weight[..., -1] = 0


def self_routing(
    num_classes: int,
    in_channels: int = 3,
    image_size: tuple[int, int] = (32, 32),
    width: int = 16,
    capsules: int = 32,
    pose: int = 16,
    hidden: int = 0,
) -> CapsuleNetwork:
    """Return the network: ResNet-20 -> primary capsules -> `hidden` layers of self-routing capsules, 3x3 with stride 2
    -> class capsules.

    Args:
        num_classes, in_channels, image_size: of the data; image_size is (height, width).
        width: channels of the first stage of the backbone.
        capsules, pose: types at a position, and elements of a pose.
        hidden: 0 or 1 layer between; with one, its poses have batch norm.

    Raises:
        ValueError: for sizes below 1, and for another number of layers.
    """
    if hidden not in (0, 1) or min(capsules, pose) < 1:
        raise ValueError(f"hidden is {hidden}, capsules {capsules} and pose {pose}; 0 or 1, and at least 1")
    backbone = ResNet20(in_channels, width)
    between = [Window(3, 2, 1)] * hidden
    height, across = count_positions(image_size, [*backbone.windows, *between])
    transforms: list[Transform] = [ConvTransform(capsules, capsules, pose, pose + 1, *window) for window in between]
    types = capsules if hidden else None
    transforms.append(NormedTransform(capsules * height * across, num_classes, pose, 1, types))
    for transform in transforms:
        uniform_start(transform)
    stack = CapsuleStack([CapsuleLayer(each, "self-routing") for each in transforms], 1)
    return CapsuleNetwork(backbone, NormedPoses(backbone.channels, capsules, pose), stack, ActivationHead())


def average_pooling(
    num_classes: int, in_channels: int = 3, image_size: tuple[int, int] = (32, 32), width: int = 16
) -> PlainNetwork:
    """Return the network without capsules: ResNet-20, the mean over the positions, a linear layer: the poster's
    AvgPool.

    Args:
        num_classes, in_channels, image_size: of the data; image_size is (height, width).
        width: channels of the first stage.
    """
    backbone = ResNet20(in_channels, width)
    linear = nn.Linear(backbone.channels, num_classes)
    nn.init.kaiming_uniform_(linear.weight)  # as released
    return PlainNetwork(backbone, nn.Sequential(*pool(), linear))


register_variant("self-routing-1-cifar10", self_routing, **CIFAR10)
register_variant("self-routing-2-cifar10", self_routing, **CIFAR10, hidden=1)
register_variant("resnet20-cifar10", average_pooling, **CIFAR10)
