"""Capsules with dynamic routing: Sabour, Frosst and Hinton, "Dynamic routing between capsules", NIPS 2017."""

from __future__ import annotations

from dataclasses import replace

from torchcaps.config import (
    AugmentConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimiserConfig,
    ScheduleConfig,
)
from torchcaps.papers.registry import recipe


@recipe
def digits() -> Config:
    """The demonstration: a narrow CapsNet on real handwritten digits, which come with torchcaps."""
    return Config(
        model=ModelConfig("capsnet", {"channels": 128, "primary": 16, "kernel": 5}),
        data=DataConfig("digits", image_size=16, augment=AugmentConfig(shift=2, rotate=10, scale=0.1)),
        loss=LossConfig("margin", reconstruction=0.0005),
        optimiser=OptimiserConfig("adam", lr=3e-3),
        schedule=ScheduleConfig("one-cycle"),
        epochs=30,
        batch_size=64,
        precision="fp32",
    )


@recipe
def capsnet_mnist() -> Config:
    """CapsNet on MNIST shifted by up to 2 pixels, with reconstruction; published: 0.25 % test error, Table 1.

    Five epochs are ours: the paper does not say how long it trains.
    """
    return Config(
        model=ModelConfig("capsnet"),
        data=DataConfig("mnist", augment=AugmentConfig(shift=2)),
        loss=LossConfig("margin", reconstruction=0.0005),
        optimiser=OptimiserConfig("adam", lr=1e-3),
        schedule=ScheduleConfig("exponential", gamma=0.96, step_size=2000),
        epochs=5,
    )


@recipe
def capsnet_fashion_mnist() -> Config:
    """CapsNet on Fashion-MNIST, trained as on MNIST; the paper has no such result."""
    return replace(capsnet_mnist(), data=DataConfig("fashion-mnist", augment=AugmentConfig(shift=2)))


@recipe
def capsnet_cifar10() -> Config:
    """CapsNet on CIFAR-10, one model of 32 types; the paper's 10.6 % test error is of 7 models on 24x24 crops.

    Each of those (Section 7) has 64 types, and in its routing a category for what is none of the above.
    """
    return replace(capsnet_mnist(), data=DataConfig("cifar10", augment=AugmentConfig(crop=4, flip=True)))
