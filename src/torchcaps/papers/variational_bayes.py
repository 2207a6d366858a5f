"""Capsule routing via variational Bayes: Ribeiro, Leontidis and Kollias, AAAI 2020; errors as others quote them.

The code trains with cross-entropy of the sigmoid activations taken for logits, which with ten classes cannot fall below
1.46 nats. Here an activation's probability is its share of their sum ("normalised-cross-entropy").
"""

from __future__ import annotations

from collections.abc import Iterator

from torchcaps.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimiserConfig, Option
from torchcaps.papers.registry import recipe
from torchcaps.tables.cells import Cell, Paper, Published, Train, table
from torchcaps.tables.metrics import ERROR

PAPER = Paper("variational-bayes", "Ribeiro, Leontidis and Kollias 2020")
SOURCE = (
    "quoted in Comput. Intell. Neurosci. 2022, 4984490, Table 1; which network it is, is inferred from its size, which "
    "it has with three channels; flips, and images standardised over all channels together, are ours"
)
EPOCHS = 300


def system(model: str, data: DataConfig, options: dict[str, Option] | None = None) -> Config:
    """Return the recipe of a network on a set."""
    return Config(
        model=ModelConfig(model, options or {}),
        data=data,
        loss=LossConfig("normalised-cross-entropy"),
        optimiser=OptimiserConfig("adam", lr=1e-3),
        epochs=EPOCHS,
    )


@recipe
def variational_bayes_fashion_mnist() -> Config:
    """Variational Bayes on Fashion-MNIST, with black around it to 32 pixels, standardised by image, 300 epochs."""
    data = DataConfig("fashion-mnist", pad=32, standardise="image", augment=AugmentConfig(crop=2, flip=True))
    return system("variational-bayes-64-16-16-16", data, {"convs": 2})


@recipe
def variational_bayes_cifar10() -> Config:
    """Variational Bayes on CIFAR-10, the network of 322,836 parameters, 300 epochs."""
    data = DataConfig("cifar10", standardise="image", augment=AugmentConfig(crop=4, flip=True))
    return system("variational-bayes-64-16-32-32-cifar10", data)


@table(PAPER, "table-quoted", "quoted", "Test error (%), as others quote it")
def table_quoted() -> Iterator[Cell]:
    fashion, cifar = (
        Train(each, seeds=1, selected=True) for each in (variational_bayes_fashion_mnist, variational_bayes_cifar10)
    )
    yield Cell("fashion-mnist", "VB, 172 K", "Fashion-MNIST", fashion, (Published("5.2"),), ERROR, SOURCE)
    yield Cell("cifar10", "VB, 323 K", "CIFAR-10", cifar, (Published("11.2"),), ERROR, SOURCE)
