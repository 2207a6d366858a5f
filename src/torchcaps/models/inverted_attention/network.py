"""The networks of Tsai, Srivastava, Goh and Salakhutdinov, "Capsules with inverted dot-product attention routing", ICLR
2020, Tables 8 to 11, with the sizes of the authors' code where the text leaves them open.

Images should have zero mean and unit variance: `DataConfig.standardise` "dataset".
"""

from __future__ import annotations

from torchcaps.backbones.interface import Window, count_positions
from torchcaps.backbones.simple import SimpleBackbone
from torchcaps.layers import CapsuleLayer, CapsuleStack, PrimaryPoses, Schedule
from torchcaps.models.images import CIFAR10, CIFAR100, DIVERSE_MULTIMNIST
from torchcaps.models.network import (
    CapsuleNetwork,
    PoseHead,
    Positions,
    choose_backbone,
    conv_transforms,
    conv_windows,
    linear_transforms,
    placed_transform,
)
from torchcaps.models.registry import register_variant
from torchcaps.routing import Start
from torchcaps.votes import Scope


def attention(
    num_classes: int,
    in_channels: int = 3,
    image_size: tuple[int, int] = (32, 32),
    backbone: str = "resnet",
    channels: int = 128,
    capsules: int = 32,
    pose: int = 16,
    hidden: tuple[int, ...] = (),
    iterations: int = 2,
    schedule: Schedule = "concurrent",
    layer_norm: bool = True,
    activations: bool = False,
    scaled: bool = True,
    scope: Scope = "window",
    start: Start = "zero",
    positions: Positions = "own",
    coordinates: bool = False,
    scrambled: bool = False,
) -> CapsuleNetwork:
    """Return the network for CIFAR-10 and CIFAR-100 (Tables 8 and 9).

    Backbone -> 1x1 convolution to primary capsules -> two convolutional layers of capsules, stride 2 and 1 -> `hidden`
    layers -> class capsules -> one linear map from a pose to a logit, shared by the classes. Scores are logits.

    Args:
        num_classes, in_channels, image_size: of the data; image_size is (height, width).
        backbone: "simple" or "resnet".
        channels: of its features.
        capsules: types at a position of the primary and of each convolutional layer.
        pose: elements of a pose, a square number.
        hidden: capsules of each linear layer below the classes.
        iterations: R, at least 1; the first has no parents to agree with yet.
        schedule: "concurrent", or "sequential", the paper's ablation B.
        layer_norm: of the parents; without it this is the paper's ablation A. The primary capsules keep theirs.
        activations: capsules have activations; with them this is the paper's ablation C, see
            `torchcaps.routing.inverted_attention_c`, and a class's pose counts in its logit by its activation.
        scaled: divide agreements by the root of the pose size, as the authors' code does, with which the published
            numbers were made; False is Eq. 2.
        scope, start: see `torchcaps.routing.inverted_attention`.
        positions: whose transforms the lowest linear layer has: each position its "own", as the paper's; "shared" or
            "pooled" ones keep its parameters from growing with the image, see `torchcaps.models.network`.
        coordinates: tell the votes of shared transforms where a child stands, as EM routing's class layer does.
        scrambled: gather windows as the released code does, see `torchcaps.votes.scrambled`; without activations only.

    Raises:
        ValueError: for images that are too small, with the smallest side that works; for sizes that do not fit.
    """
    if scrambled and activations:
        raise ValueError("activations is True, but scrambled windows hold no child as a whole: set one of the two only")
    _check_scrambled(scrambled, scope)
    features = choose_backbone(backbone, in_channels, channels)
    primary = PrimaryPoses(channels, capsules, pose, layer_norm=True, activations=activations)
    strides = (2, 1)
    height, width = count_positions(image_size, [*features.windows, *conv_windows(strides)])
    first, *others = (*hidden, num_classes)
    transforms = [
        *conv_transforms(strides, capsules, pose, scrambled=scrambled),
        placed_transform(capsules, height * width, first, pose, True, positions, coordinates),
        *linear_transforms((first, *others), pose),
    ]
    rule = "inverted-attention-c" if activations else "inverted-attention"
    settings = {"layer_norm": layer_norm, "scaled": scaled, "scope": scope, "start": start}
    layers = [CapsuleLayer(transform, rule, **settings) for transform in transforms]
    return CapsuleNetwork(features, primary, CapsuleStack(layers, iterations, schedule), PoseHead(pose))


def attention_diverse(
    num_classes: int,
    in_channels: int = 3,
    image_size: tuple[int, int] = (36, 36),
    channels: int = 1024,
    capsules: int = 16,
    pose: int = 64,
    matrix: bool = True,
    iterations: int = 2,
    schedule: Schedule = "concurrent",
    layer_norm: bool = True,
    scaled: bool = True,
    scope: Scope = "window",
    start: Start = "zero",
    positions: Positions = "own",
    coordinates: bool = False,
    scrambled: bool = False,
) -> CapsuleNetwork:
    """Return the network for DiverseMultiMNIST (Tables 10 and 11).

    3x3 convolution with stride 2 -> 3x3 convolution with stride 2, without padding, to primary capsules -> one
    convolutional layer of capsules -> class capsules -> logits, to be read through a sigmoid.

    Args:
        channels: of the first convolution.
        matrix: whether poses are square matrices or vectors.
        num_classes, in_channels, image_size, capsules, pose, iterations, schedule, layer_norm, scaled, scope, start,
            positions, coordinates, scrambled: as in `attention`; a vector pose may have any number of elements.

    Raises:
        ValueError: as in `attention`.
    """
    _check_scrambled(scrambled, scope)
    features, window, strides = SimpleBackbone(in_channels, channels), Window(3, 2), (1,)
    height, width = count_positions(image_size, [*features.windows, window, *conv_windows(strides)])
    primary = PrimaryPoses(channels, capsules, pose, window.kernel, window.stride, layer_norm=True)
    transforms = [
        *conv_transforms(strides, capsules, pose, matrix, scrambled=scrambled),
        placed_transform(capsules, height * width, num_classes, pose, matrix, positions, coordinates),
    ]
    settings = {"layer_norm": layer_norm, "scaled": scaled, "scope": scope, "start": start}
    layers = [CapsuleLayer(transform, "inverted-attention", **settings) for transform in transforms]
    return CapsuleNetwork(features, primary, CapsuleStack(layers, iterations, schedule), PoseHead(pose))


def _check_scrambled(scrambled: bool, scope: Scope) -> None:
    if scrambled and scope == "image":
        raise ValueError("scope is 'image', but no other window sees a child of scrambled ones: use scope 'window'")


register_variant("attention-resnet-cifar10", attention, **CIFAR10)
register_variant("attention-resnet-cifar100", attention, **CIFAR100, pose=36, hidden=(20,))
register_variant("attention-simple-cifar10", attention, **CIFAR10, backbone="simple", channels=256)
register_variant("attention-simple-cifar100", attention, **CIFAR100, backbone="simple", pose=36, hidden=(20,))
register_variant("attention-diverse-multimnist-matrix", attention_diverse, **DIVERSE_MULTIMNIST)
register_variant("attention-diverse-multimnist-vector", attention_diverse, **DIVERSE_MULTIMNIST, matrix=False)
register_variant("attention-diverse-multimnist-wide", attention_diverse, **DIVERSE_MULTIMNIST, capsules=64)
