"""Efficient-CapsNet: Mazzia, Salvetti and Chiaberge, Scientific Reports 11:14634 (2021).

Recipes of MNIST and MultiMNIST follow the released code, but for these: the epoch is chosen on a validation split (the
code chooses it on the test split); pixels are divided by 255 (by 256 there); an image of two digits is right when both
are (the code gives half credit); pairs of digits are of two classes in training too, moved by up to 4 pixels and not 6,
and the test reads 10,000 images of them, not 10 million; a score is a length without the code's 1e-7 under the root.
The recipe of CIFAR-10 is ours.
"""

from __future__ import annotations

from collections.abc import Iterator

from torchcaps.config import (
    AugmentConfig,
    ComposeConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimiserConfig,
    ScheduleConfig,
)
from torchcaps.papers.registry import recipe
from torchcaps.tables.cells import Cell, Paper, Published, Quoted, Train, table
from torchcaps.tables.metrics import ERROR

PAPER = Paper("efficient-capsnet", "Mazzia, Salvetti and Chiaberge 2021")
EPOCHS = 150  # of the released configuration
RATE, KEPT, FLOOR = 5e-4, 0.97, 5e-5  # the first rate, what is left of it after an epoch, and the least
MEAN = 0.392  # weight of the mean squared error of a reconstruction's pixels; ours is of their sum
OURS = "chosen on validation and pixels over 255, where the released code does otherwise"
ERRORS = {  # on MNIST, percent: rows of other networks; of the paper's own two those with a decoder, as ours has, first
    "cnn": ("CNN, 173 K, with decoder", "0.40"),
    "cnn-without": ("CNN, 173 K, without decoder", "0.48"),
    "dynamic": ("CapsNet, 183 K, with decoder", "0.39"),
    "dynamic-without": ("CapsNet, 183 K, without decoder", "0.54"),
    "em": ("EM routing, 310 K", "0.44"),
    "ar-capsnet": ("AR-CapsNet, 5,310 K", "0.54"),
    "da-capsnet": ("DA-CapsNet, 7,000 K", "0.47"),
}


def _config(model: str, data: DataConfig, reconstruction: float, steps: int) -> Config:
    return Config(
        model=ModelConfig(model),
        data=data,
        loss=LossConfig("margin", reconstruction=reconstruction),
        optimiser=OptimiserConfig("adam", lr=RATE, eps=1e-7),
        schedule=ScheduleConfig("exponential", gamma=KEPT, step_size=steps, lr_min=FLOOR),
        epochs=EPOCHS,
        batch_size=16,
    )


@recipe(selected=True)
def efficient_capsnet_mnist() -> Config:
    """Efficient-CapsNet on MNIST with its augmentation and decoder, 150 epochs of batches of 16."""
    data = DataConfig("mnist", augment=AugmentConfig(byerly=True))
    return _config("efficient-capsnet-mnist", data, MEAN / 784, 54_000 // 16)


@recipe(selected=True)
def efficient_capsnet_multimnist() -> Config:
    """Efficient-CapsNet on MultiMNIST, both digits decoded; shifts of 4 pixels, 6 in the code."""
    data = DataConfig("multimnist", compose=ComposeConfig(epoch=600_000))
    return _config("efficient-capsnet-multimnist", data, MEAN / 2 / 1296, 37_500)


@recipe(selected=True)
def efficient_capsnet_cifar10() -> Config:
    """Efficient-CapsNet on CIFAR-10, a network that is not the authors'; one-cycle, without a decoder."""
    return Config(
        model=ModelConfig("efficient-capsnet-cifar10", {"decoder": False}),
        data=DataConfig("cifar10", standardise="dataset", augment=AugmentConfig(crop=4, flip=True)),
        loss=LossConfig("margin"),
        optimiser=OptimiserConfig("adam", lr=1e-3),
        schedule=ScheduleConfig("one-cycle"),
        epochs=120,
    )


@table(PAPER, "table2", "Table 2", "Test error on MNIST (%), and of the paper's other networks")
def table2() -> Iterator[Cell]:
    """Yield cells without the paper's own number: whether 0.16 is a mean, a best or an ensemble is not settled."""
    own = Train(efficient_capsnet_mnist, seeds=1, selected=True)
    yield Cell("efficient-capsnet", "Efficient-CapsNet, 161 K", "MNIST", own, (), ERROR, OURS)
    for name, (row, error) in ERRORS.items():
        yield Cell(name, row, "MNIST", Quoted(), (Published(error),), ERROR)
