"""FM agreement in the network of Sabour et al. 2017, without its decoder (Zhao, Wang and Huang 2020, section 4.1)."""

from __future__ import annotations

from torchcaps.models.capsnet import CapsNet
from torchcaps.models.registry import register_model


@register_model("fm-capsnet")
def fm_capsnet(
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    channels: int = 256,
    primary: int = 32,
    primary_pose: int = 8,
    class_pose: int = 16,
    kernel: int = 9,
    stride: int = 2,
    l2: bool = True,
    mean: bool = True,
    halved: bool = True,
    batch_norm: str = "element",
    start: str = "torch",
) -> CapsNet:
    """Return `CapsNet` with FM agreement; the score of a class is its activation, which the margin loss may take.

    6,804,256 parameters for 28x28x1 and 10 classes: those of the same network with dynamic routing, and 32 of batch
    norm. The released code has 64 channels, 8 types of primary capsules, a `start` as Keras has it, and neither `l2`,
    `halved` nor batch norm.

    Args:
        num_classes, in_channels, image_size, channels, primary, primary_pose, class_pose, kernel, stride, start: see
            `CapsNet`.
        l2, mean, halved: see `FM`.
        batch_norm: "element", "child", "pair" or "none", see `FM`.
    """
    options = {"l2": l2, "mean": mean, "halved": halved, "batch_norm": None if batch_norm == "none" else batch_norm}
    return CapsNet(
        num_classes,
        in_channels,
        image_size,
        channels,
        primary,
        primary_pose,
        class_pose,
        kernel,
        stride,
        routing="fm",
        decoder=False,
        routing_options={**options, "normalised": True},
        start=start,
    )
