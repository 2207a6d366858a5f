"""The EM routing baselines of Tsai et al. (ICLR 2020), Tables 6 and 7, on the simple and on the ResNet backbone."""

from __future__ import annotations

from torchcaps.backbones.interface import Window, count_positions
from torchcaps.layers import CapsuleLayer, CapsuleStack, PrimaryPoses
from torchcaps.models.images import CIFAR10, CIFAR100
from torchcaps.models.network import (
    ActivationHead,
    CapsuleNetwork,
    choose_backbone,
    conv_transforms,
    conv_windows,
    placed_transform,
)
from torchcaps.models.registry import register_variant
from torchcaps.votes import Scope


def em(
    num_classes: int,
    in_channels: int = 3,
    image_size: tuple[int, int] = (32, 32),
    backbone: str = "simple",
    channels: int = 256,
    capsules: int = 32,
    pose: int = 16,
    iterations: int = 2,
    scope: Scope = "image",
    coordinates: bool = True,
    temperature: float = 0.01,
    normalise: bool = False,
) -> CapsuleNetwork:
    """Return the EM routing network for CIFAR-10 and CIFAR-100 (Tables 6 and 7).

    4x4 convolution with stride 2 and batch norm, or ResNet backbone -> 1x1 convolutions to primary poses and
    activations -> two convolutional layers of capsules, stride 2 and 1 -> class capsules. Scores are their activations.

    All positions of the last convolutional layer share the transforms of the class layer, as Hinton et al. (2018) have
    it: only so do the published counts come out.

    Args:
        num_classes, in_channels, image_size: of the data; image_size is (height, width).
        backbone: "simple" or "resnet".
        channels: of its features.
        capsules: types at a position of the primary and of each convolutional layer.
        pose: elements of a pose, a square number.
        iterations: of the routing, at least 1.
        coordinates: the votes for the classes are told where a child stands (Hinton et al. 2018, section 4).
        scope, temperature, normalise: see `torchcaps.routing.em`.

    Raises:
        ValueError: for images that are too small, with the smallest side that works; for sizes that do not fit.
    """
    features = choose_backbone(backbone, in_channels, channels, Window(4, 2, 1), batch_norm=True)
    primary = PrimaryPoses(channels, capsules, pose, bias=True, activations=True)
    strides = (2, 1)
    height, width = count_positions(image_size, [*features.windows, *conv_windows(strides)])
    top = placed_transform(capsules, height * width, num_classes, pose, positions="shared", coordinates=coordinates)
    settings = {"scope": scope, "temperature": temperature, "normalise": normalise}
    layers = [CapsuleLayer(each, "em", **settings) for each in [*conv_transforms(strides, capsules, pose), top]]
    return CapsuleNetwork(features, primary, CapsuleStack(layers, iterations), ActivationHead())


register_variant("em-simple-cifar10", em, **CIFAR10)
register_variant("em-simple-cifar100", em, **CIFAR100)
register_variant("em-resnet-cifar10", em, **CIFAR10, backbone="resnet", channels=128)
register_variant("em-resnet-cifar100", em, **CIFAR100, backbone="resnet", channels=128)
