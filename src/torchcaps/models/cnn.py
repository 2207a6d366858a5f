"""Networks without capsules: the baselines of Tsai et al. (ICLR 2020), Tables 2, 3 and 12, ResNet-18, and a control."""

from __future__ import annotations

from torch import Tensor, nn

from torchcaps.backbones.interface import Window, count_positions
from torchcaps.backbones.resnet import ResNetBackbone, Stage
from torchcaps.backbones.resnet_v2 import ResNetV2
from torchcaps.backbones.simple import HALVING, SimpleBackbone
from torchcaps.config import ScoreKind
from torchcaps.layers.keras import EPS, MOMENTUM, SameConv2d
from torchcaps.models.images import AFFNIST, CIFAR10, CIFAR100, DIVERSE_MULTIMNIST
from torchcaps.models.registry import Model, Output, register_variant

POOL = Window(2, 2)


class PlainNetwork(Model):
    """Images through `features` [b, c, h, w] and `head` to scores [b, classes], which are logits; without capsules."""

    def __init__(self, features: nn.Module, head: nn.Module):
        super().__init__()
        self.features, self.head = features, head

    @property
    def scores(self) -> ScoreKind:
        return "logit"

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        return Output(self.head(self.features(images)), (), {})


def pool() -> list[nn.Module]:
    """The mean over all positions: [b, c, h, w] -> [b, c]."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]


def conv_relu_norm(in_channels: int, channels: int, window: Window) -> nn.Sequential:
    """Convolution, ReLU and batch norm, in the order of the paper's tables."""
    conv = nn.Conv2d(in_channels, channels, window.kernel, window.stride, window.padding)
    return nn.Sequential(conv, nn.ReLU(), nn.BatchNorm2d(channels))


def simple_cnn(
    num_classes: int, in_channels: int = 3, image_size: tuple[int, int] = (32, 32), channels: int = 1024
) -> PlainNetwork:
    """Three 3x3 convolutions with stride 2, pooling after the second and the third, one linear layer (Tables 2 and 3).

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
    """The layers and neurons of the capsule networks for DiverseMultiMNIST, without capsules (Table 12, section 6).

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
    """ResNet-18 (He et al. 2016) as is common on CIFAR: a 3x3 stem, four stages of two blocks, the mean, a classifier.

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


def residual_cnn(
    num_classes: int,
    in_channels: int = 1,
    image_size: tuple[int, int] = (40, 40),
    blocks: tuple[int, ...] = (1, 1, 1),
    width: int = 16,
    channels: int = 64,
    activated_stem: bool = True,
    activated_projection: bool = False,
) -> PlainNetwork:
    """`fm_resnet` with neurons for capsules: the control of equal parameters that its affine generalisation is held to.

    The same backbone; in place of the primary capsules a 5x5 convolution with stride 2, batch norm and ReLU; in place
    of the class capsules a linear layer of all positions. 195,450 parameters for 40x40x1 and 10 classes, where
    `fm-resnet-affnist` has 195,376 without its decoder. Not in Zhao et al. 2020.

    Args:
        num_classes, in_channels, image_size: of the data; image_size is (height, width).
        blocks, width, activated_stem, activated_projection: see `ResNetV2`.
        channels: of the 5x5 convolution; 64 are 4 types of primary capsules with 16 elements.

    Raises:
        ValueError: for sizes below 1.
    """
    backbone, last = ResNetV2(in_channels, blocks, width, activated_stem, activated_projection), Window(5, 2, 2)
    rows, columns = count_positions(image_size, (*backbone.windows, last))
    conv = SameConv2d(backbone.channels, channels, last.kernel, last.stride)
    features = nn.Sequential(backbone, conv, nn.BatchNorm2d(channels, EPS, MOMENTUM), nn.ReLU())
    return PlainNetwork(features, nn.Sequential(nn.Flatten(), nn.Linear(channels * rows * columns, num_classes)))


register_variant("cnn-simple-cifar10", simple_cnn, **CIFAR10)
register_variant("cnn-simple-cifar100", simple_cnn, **CIFAR100)
register_variant("cnn-diverse-multimnist-pooling", diverse_cnn, **DIVERSE_MULTIMNIST)
register_variant("cnn-diverse-multimnist-dense", diverse_cnn, **DIVERSE_MULTIMNIST, pooling=False)
register_variant("resnet18-cifar10", resnet18, **CIFAR10)
register_variant("resnet18-cifar100", resnet18, **CIFAR100)
register_variant("cnn-affnist", residual_cnn, **AFFNIST)
