"""The dynamic routing baselines of Tsai et al. (ICLR 2020): Tables 4 and 5, on the ResNet backbone (Table 1), and on
DiverseMultiMNIST (section 6).

The paper does not say how the ResNet backbone is followed. Here a 9x9 convolution makes the primary capsules as on the
simple backbone, but with stride 1, so that 32x32 pixels leave 2048 children of 8 elements there too: the published
counts of CIFAR-10 and CIFAR-100 differ by 23.59 M, which is what 2048 of them take for 90 more classes of 16. These
networks have 6,616,128 and 30,209,088 parameters; the published 12.45 M and 36.04 M do not follow from the text.
"""

from __future__ import annotations

import math

from torch import nn

from torchcaps.backbones.interface import Window, count_positions
from torchcaps.backbones.simple import SimpleBackbone
from torchcaps.layers import CapsuleLayer, CapsuleStack, LinearTransform, PrimaryCapsules
from torchcaps.models.images import CIFAR10, CIFAR100, DIVERSE_MULTIMNIST
from torchcaps.models.network import (
    CapsuleNetwork,
    LengthHead,
    PoseHead,
    choose_backbone,
    conv_transforms,
    conv_windows,
    linear_transforms,
)
from torchcaps.models.registry import register_variant
from torchcaps.names import check_choice

STD = 0.1  # of the first weights, as in CapsNet


def dynamic(
    num_classes: int,
    in_channels: int = 3,
    image_size: tuple[int, int] = (32, 32),
    backbone: str = "simple",
    channels: int = 256,
    capsules: int = 32,
    pose: int = 8,
    class_pose: int = 16,
    iterations: int = 3,
) -> CapsuleNetwork:
    """Return the dynamic routing network for CIFAR-10 and CIFAR-100 (Tables 4 and 5): CapsNet without a decoder.

    9x9 convolution or ResNet backbone -> 9x9 convolution to primary capsules, stride 2 after the one and 1 after the
    other -> class capsules. Scores are their lengths.

    Args:
        num_classes, in_channels, image_size: of the data; image_size is (height, width).
        backbone: "simple" or "resnet".
        channels: of its features.
        capsules: types of primary capsules.
        pose, class_pose: elements of a primary and of a class capsule.
        iterations: of the routing, at least 1.

    Raises:
        ValueError: for images that are too small, with the smallest side that works; for sizes that do not fit.
    """
    features = choose_backbone(backbone, in_channels, channels, Window(9))
    window = Window(9, 2 if backbone == "simple" else 1)
    height, width = count_positions(image_size, [*features.windows, window])
    primary = PrimaryCapsules(channels, capsules, pose, window.kernel, window.stride)
    transform = LinearTransform(capsules * height * width, num_classes, pose, class_pose, std=STD)
    return CapsuleNetwork(
        features, primary, CapsuleStack([CapsuleLayer(transform, "dynamic")], iterations), LengthHead()
    )


def dynamic_diverse(
    num_classes: int,
    in_channels: int = 3,
    image_size: tuple[int, int] = (36, 36),
    channels: int = 1024,
    capsules: int = 16,
    pose: int = 64,
    iterations: int = 3,
    head: str = "linear",
    gain: float | None = None,
) -> CapsuleNetwork:
    """Return the network of Table 11 with dynamic routing: CapsNet* of figure 5.

    The paper says that layers, neurons and optimiser are those of the vector network. Squash stands for layer norm, a
    layer finishes its iterations before the next begins, and the primary convolution has a bias, as in CapsNet. Weights
    start so that lengths keep to one half from layer to layer: with CapsNet's start those of a narrowed network's
    classes are a thousandth, and it did not learn. The head reads poses at the length that layer norm gives them there:
    squashed ones, shorter than 1, move its logits by less than 1 / pose of that at the same rate.

    Args:
        num_classes, in_channels, image_size: of the data; image_size is (height, width).
        channels: of the first convolution.
        capsules: types at a position of both layers.
        pose: elements of a pose, a vector.
        iterations: of the routing, at least 1.
        head: "linear", logits as in Table 11, for binary cross-entropy; "length" of the class capsules, for the margin
            loss.
        gain: what the linear head multiplies poses by; None: the root of `pose`.

    Raises:
        ValueError: as in `dynamic`, and for another head, or a gain that is not above 0 or of lengths.
    """
    if gain is not None and gain <= 0:
        raise ValueError(f"gain is {gain}; it must be above 0, or None for the root of the pose size")
    check_choice("head", head, ("linear", "length"))
    if gain is not None and head == "length":
        raise ValueError(f"gain is {gain}, but head is 'length', which reads poses as they are: leave it out")
    features, window, strides = SimpleBackbone(in_channels, channels), Window(3, 2), (1,)
    height, width = count_positions(image_size, [*features.windows, window, *conv_windows(strides)])
    primary = PrimaryCapsules(channels, capsules, pose, window.kernel, window.stride)
    counts = (capsules * height * width, num_classes)
    window_std, whole_std = keep_length(9 * capsules, capsules, pose), keep_length(counts[0], num_classes, pose)
    transforms = [
        *conv_transforms(strides, capsules, pose, matrix=False, std=window_std),
        *linear_transforms(counts, pose, matrix=False, std=whole_std),
    ]
    layers = [CapsuleLayer(transform, "dynamic") for transform in transforms]
    gain = math.sqrt(pose) if gain is None else gain
    reader: nn.Module = PoseHead(pose, gain) if head == "linear" else LengthHead()
    return CapsuleNetwork(features, primary, CapsuleStack(layers, iterations), reader)


def keep_length(children: int, parents: int, pose: int) -> float:
    """Return the standard deviation of normal weights with which children of length 1/2 make parents of that length at
    first.

    Of independent children u, sum_i u_i W_i / parents has the length |u| std sqrt(children * pose) / parents. It is to
    be 2 |u|, since squash then leaves 1/2 as it is.
    """
    return 2 * parents / math.sqrt(children * pose)


register_variant("dynamic-simple-cifar10", dynamic, **CIFAR10)
register_variant("dynamic-simple-cifar100", dynamic, **CIFAR100)
register_variant("dynamic-resnet-cifar10", dynamic, **CIFAR10, backbone="resnet", channels=128)
register_variant("dynamic-resnet-cifar100", dynamic, **CIFAR100, backbone="resnet", channels=128)
register_variant("dynamic-diverse-multimnist", dynamic_diverse, **DIVERSE_MULTIMNIST)
