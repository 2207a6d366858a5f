"""The networks without capsules of Tsai et al. (ICLR 2020): the baselines of Tables 2, 3 and 12, and ResNet-18."""

from __future__ import annotations

from torch import nn

from torchcaps.backbones.interface import Window, count_positions
from torchcaps.backbones.resnet import ResNetBackbone, Stage
from torchcaps.backbones.simple import HALVING, SimpleBackbone
from torchcaps.models.images import CIFAR10, CIFAR100, DIVERSE_MULTIMNIST
from torchcaps.models.plain import PlainNetwork, pool
from torchcaps.models.registry import register_variant

POOL = Window(2, 2)


def conv_relu_norm(in_channels: int, channels: int, window: Window) -> nn.Sequential:
    """Return a convolution, ReLU and batch norm, in the order of the paper's tables."""
    conv = nn.Conv2d(in_channels, channels, window.kernel, window.stride, window.padding)
    return nn.Sequential(conv, nn.ReLU(), nn.BatchNorm2d(channels))


def simple_cnn(
    num_classes: int, in_channels: int = 3, image_size: tuple[int, int] = (32, 32), channels: int = 1024
) -> PlainNetwork:
    """Return the network of Tables 2 and 3: three 3x3 convolutions with stride 2, pooling after the second and the
    third, one linear layer.

    The last pooling takes the mean of all positions, which are 2x2 for the 32x32 images of the paper.

    Args:
        num_classes, in_channels, image_size: of the data; image_size is (height, width).
        channels: of each convolution.

    Raises:
        ValueError: for images that are too small, with the smallest side that works; for sizes below 1.
    """
    count_positions(image_size, [HALVING, HALVING, POOL, HALVING])
    features = nn.Sequential(
        SimpleBackbone(in_channels, channels),
        conv_relu_norm(channels, channels, HALVING),
        nn.AvgPool2d(POOL.kernel, POOL.stride),
        conv_relu_norm(channels, channels, HALVING),
    )
    return PlainNetwork(features, nn.Sequential(*pool(), nn.Linear(channels, num_classes)))


def diverse_cnn(
    num_classes: int,
    in_channels: int = 3,
    image_size: tuple[int, int] = (36, 36),
    channels: int = 1024,
    hidden: int = 640,
    pooling: bool = True,
) -> PlainNetwork:
    """Return the layers and neurons of the capsule networks for DiverseMultiMNIST, without capsules (Table 12,
    section 6).

    3x3 convolutions with strides 2, 2 and 1, a linear layer, a linear classifier. Scores are logits, to be read through
    a sigmoid.

    Args:
        num_classes, in_channels, image_size: of the data; image_size is (height, width).
        channels: of each convolution.
        hidden: neurons of the linear layer.
        pooling: the linear layer reads the mean of all positions, which equals the mean of what it makes of each (Table
            12); without it, all positions together.

    Raises:
        ValueError: as in `simple_cnn`.
    """
    windows = [Window(3, 2), Window(3)]
    height, width = count_positions(image_size, [HALVING, *windows])
    features = nn.Sequential(
        SimpleBackbone(in_channels, channels), *(conv_relu_norm(channels, channels, window) for window in windows)
    )
    gather, neurons = (pool(), channels) if pooling else ([nn.Flatten()], channels * height * width)
    head = nn.Sequential(*gather, nn.Linear(neurons, hidden), nn.Linear(hidden, num_classes))
    return PlainNetwork(features, head)


def resnet18(
    num_classes: int, in_channels: int = 3, image_size: tuple[int, int] = (32, 32), channels: int = 64
) -> PlainNetwork:
    """Return ResNet-18 (He et al. 2016) as is common on CIFAR: a 3x3 stem, four stages of two blocks, the mean, a
    classifier.

    11,173,962 parameters for three colours and 10 classes (11.17 M in Table 1).

    Args:
        num_classes, in_channels, image_size: of the data; image_size is (height, width), at least 1 pixel.
        channels: of the first stage; each further one has twice those of the one before.

    Raises:
        ValueError: for sizes below 1.
    """
    stages = (Stage(channels, 2), *(Stage(channels * 2**n, 2, stride=2) for n in (1, 2, 3)))
    features = ResNetBackbone(in_channels, stages)
    return PlainNetwork(features, nn.Sequential(*pool(), nn.Linear(features.channels, num_classes)))


register_variant("cnn-simple-cifar10", simple_cnn, **CIFAR10)
register_variant("cnn-simple-cifar100", simple_cnn, **CIFAR100)
register_variant("cnn-diverse-multimnist-pooling", diverse_cnn, **DIVERSE_MULTIMNIST)
register_variant("cnn-diverse-multimnist-dense", diverse_cnn, **DIVERSE_MULTIMNIST, pooling=False)
register_variant("resnet18-cifar10", resnet18, **CIFAR10)
register_variant("resnet18-cifar100", resnet18, **CIFAR100)
