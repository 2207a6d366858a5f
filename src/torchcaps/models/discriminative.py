"""The three-layer network of Yang, Li and Yu 2021 (Table I): CapsNet, whose coefficients have a goal of their own."""

from __future__ import annotations

from torchcaps.models.capsnet import CapsNet
from torchcaps.models.registry import register_model


@register_model("discriminative-capsnet")
def discriminative_capsnet(
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    channels: int = 256,
    primary: int = 32,
    kernel: int = 9,
    hidden: tuple[int, ...] = (),
    leak: float = 0.0,
    decoder: bool = False,
    norm: str = "l2",
    penalty_weight: float = 0.001,
    initial: float = 0.1,
    proximal: bool = False,
    fixed: bool = False,
    absent_weight: float = 1.0,
) -> CapsNet:
    """Return `CapsNet` whose layers route towards discriminative quality; 6,815,744 parameters for 28x28x1 and 10
    classes.

    11,520 of them are coefficients. MNIST and Fashion-MNIST: the defaults, with `decoder` (1,411,344 more parameters)
    or without. CIFAR-10: `primary` 64 and a `leak`, whose slope the paper does not say; 0.01 is that of its source.

    Args:
        num_classes, in_channels, image_size, channels, primary, kernel, hidden, leak, decoder: see `CapsNet`.
        norm, penalty_weight, initial, proximal, fixed, absent_weight: see `Discriminative`.
    """
    options = {
        "norm": norm,
        "penalty_weight": penalty_weight,
        "initial": initial,
        "proximal": proximal,
        "fixed": fixed,
        "absent_weight": absent_weight,
    }
    return CapsNet(
        num_classes,
        in_channels,
        image_size,
        channels,
        primary,
        kernel=kernel,
        routing="discriminative",
        decoder=decoder,
        hidden=hidden,
        leak=leak,
        routing_options=options,
    )
