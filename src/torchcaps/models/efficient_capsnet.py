"""Efficient-CapsNet (Mazzia, Salvetti and Chiaberge 2021, Scientific Reports 11:14634): four convolutions, a depthwise
one over what is left of the image, 16 primary capsules, self-attention routing.

Sizes and the order of its parts (ReLU before batch norm) are those of the released code; parameters were counted:
161,824 on MNIST, 154,656 on MultiMNIST, each without the decoder. The network for CIFAR-10 (168,544) is not the
authors'.
"""

from __future__ import annotations

from torch import Tensor, nn

from torchcaps.backbones.interface import Window, count_positions
from torchcaps.capsules import Capsules, lengths, squash_exponential
from torchcaps.config import ScoreKind
from torchcaps.layers import CapsuleLayer, CapsuleStack, DenseDecoder, LinearTransform, chosen_class
from torchcaps.layers.keras import EPS, MOMENTUM, glorot_normal_, glorot_uniform_, he_normal_, normal_
from torchcaps.models.images import CIFAR10, MULTIMNIST
from torchcaps.models.registry import Model, Output, register_variant


class CutCapsules(nn.Module):
    """Features [b, f], cut into poses and shrunk.

    Args:
        pose: elements of a pose; they divide f.
    """

    def __init__(self, pose: int):
        super().__init__()
        self.pose = pose

    def forward(self, features: Tensor) -> Capsules:
        """Map features [b, f] -> poses [b, i, d], each of a length below one."""
        return Capsules(squash_exponential(features.unflatten(-1, (-1, self.pose))))


class EfficientCapsNet(Model):
    """Images through `stem` to features, which are cut into primary capsules, and one routed layer of class capsules.

    Args:
        stem: from images to features [b, f].
        pose: elements of a primary capsule; they divide f.
        stack: whose last layer holds the class capsules.
        decoder: from these to images, or None. Scores are the lengths of the class capsules.
    """

    def __init__(self, stem: nn.Module, pose: int, stack: CapsuleStack, decoder: DenseDecoder | None):
        super().__init__()
        self.stem, self.primary, self.stack, self.decoder = stem, CutCapsules(pose), stack, decoder

    @property
    def scores(self) -> ScoreKind:
        return "length"

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        """Map images [b, c, h, w] -> `Output`, whose scores are lengths; `labels` tell the decoder which capsule to
        take.
        """
        primary = self.primary(self.stem(images))
        steps = self.stack(primary)
        classes = steps[-1].capsules
        scores = lengths(classes.poses)
        aux: dict = {"steps": steps}
        if self.decoder is not None:
            aux["reconstruction"] = self.decoder(classes.poses, chosen_class(scores, labels))
        return Output(scores, (primary, classes), aux)

    def reconstruct(self, poses: Tensor, chosen: Tensor) -> Tensor:
        return super().reconstruct(poses, chosen) if self.decoder is None else self.decoder(poses, chosen)


def efficient_capsnet(
    num_classes: int,
    in_channels: int = 1,
    image_size: tuple[int, int] = (28, 28),
    kernels: tuple[int, ...] = (5, 3, 3, 3),
    strides: tuple[int, ...] = (1, 1, 1, 2),
    widths: tuple[int, ...] = (32, 64, 64, 128),
    depthwise: int | None = None,
    depthwise_stride: int = 1,
    pose: int = 8,
    class_pose: int = 16,
    decoder: bool = True,
    prior: bool = True,
    bias: bool = False,
) -> EfficientCapsNet:
    """Return the network: convolutions, each with ReLU and then batch norm; a depthwise one; 16 primary capsules;
    self-attention routing.

    Args:
        num_classes, in_channels, image_size: of the data; image_size is (height, width).
        kernels, strides, widths: of the convolutions, without padding; as many of each.
        depthwise: kernel of the depthwise convolution; None: all that is left, which must be square.
        depthwise_stride: its stride. It leaves one position.
        pose, class_pose: elements of a primary and of a class capsule; `pose` divides the last width.
        decoder: whether there is one, dense with 512 and 1,024 units.
        prior, bias: see `torchcaps.routing.self_attention`.

    Raises:
        ValueError: for images that are too small, and for sizes that do not fit.
    """
    if not len(kernels) == len(strides) == len(widths) > 0:
        raise ValueError(f"kernels {kernels}, strides {strides} and widths {widths} must be as many, at least one")
    if min(*kernels, *strides, *widths, pose, class_pose) < 1 or widths[-1] % pose:
        raise ValueError(f"pose is {pose} and widths {widths}: all sizes are at least 1, and it divides the last")
    windows = [Window(kernel, stride) for kernel, stride in zip(kernels, strides, strict=True)]
    height, width = count_positions(image_size, windows)
    last = Window(min(height, width) if depthwise is None else depthwise, depthwise_stride)
    if count_positions((height, width), [last]) != (1, 1):
        raise ValueError(
            f"a depthwise convolution of {last.kernel}x{last.kernel} leaves more than one of {height}x{width} "
            "positions: take another kernel or image_size"
        )
    layers: list[nn.Module] = []
    channels = in_channels
    for window, out in zip(windows, widths, strict=True):
        conv = nn.Conv2d(channels, out, window.kernel, window.stride)
        he_normal_(conv)
        layers += [conv, nn.ReLU(), nn.BatchNorm2d(out, EPS, MOMENTUM)]
        channels = out
    squeeze = nn.Conv2d(channels, channels, last.kernel, last.stride, groups=channels)
    glorot_uniform_(squeeze)
    children = channels // pose
    transform = LinearTransform(children, num_classes, pose, class_pose)
    normal_(transform.weight, 2 / (num_classes * children * pose))  # Keras counts classes and children as places
    stack = CapsuleStack([CapsuleLayer(transform, "self-attention", prior=prior, bias=bias)], 1)
    decoded = DenseDecoder(num_classes, class_pose, (in_channels, *image_size)) if decoder else None
    if decoded is not None:
        start_as_released(decoded)
    return EfficientCapsNet(nn.Sequential(*layers, squeeze, nn.Flatten()), pose, stack, decoded)


def start_as_released(decoder: DenseDecoder) -> None:
    """Draw weights as Keras does: of the hidden layers by He et al., of the last by Glorot and Bengio; no biases."""
    *hidden, last = [each for each in decoder.layers if isinstance(each, nn.Linear)]
    for layer in hidden:
        he_normal_(layer)
    glorot_normal_(last.weight, last.in_features, last.out_features)
    nn.init.zeros_(last.bias)


register_variant("efficient-capsnet-mnist", efficient_capsnet)
register_variant(
    "efficient-capsnet-multimnist",
    efficient_capsnet,
    **MULTIMNIST,
    strides=(1, 1, 2, 2),
    depthwise=5,
    depthwise_stride=2,
)
register_variant("efficient-capsnet-cifar10", efficient_capsnet, **CIFAR10)
