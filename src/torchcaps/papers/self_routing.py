"""Self-routing capsule networks: Hahn, Pyeon and Kim, NeurIPS 2019; numbers of the authors' poster.

The code holds out 10 % of the training images, but changes those of validation as it changes those of training; here
they are as they are. Its viewpoint runs choose the epoch on the set of novel viewpoints, and are not here.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

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
from torchcaps.tables.cells import Cell, Paper, Published, Quoted, Train, table
from torchcaps.tables.metrics import ERROR

PAPER = Paper("self-routing", "Hahn, Pyeon and Kim 2019")
Set = Literal["cifar10", "svhn"]
COLUMNS: dict[Set, str] = {"cifar10": "CIFAR-10", "svhn": "SVHN"}
Errors = tuple[tuple[str, str], tuple[str, str]]  # on CIFAR-10 and on SVHN, each with its spread
ROWS: dict[str, tuple[str, str, Errors]] = {  # as printed, our model if there is one
    "average-pooling": ("AvgPool", "resnet20-cifar10", (("7.94", "0.21"), ("3.55", "0.11"))),
    "conv": ("Conv", "", (("10.01", "0.99"), ("3.98", "0.15"))),
    "dynamic-1": ("DR-1", "", (("8.46", "0.27"), ("3.49", ""))),
    "dynamic-2": ("DR-2", "", (("7.86", "0.21"), ("3.17", ""))),
    "em-1": ("EM-1", "", (("10.25", "0.45"), ("3.85", ""))),
    "em-2": ("EM-2", "", (("12.52", "0.32"), ("3.70", ""))),
    "self-routing-1": ("SR-1", "self-routing-1-cifar10", (("8.17", "0.18"), ("3.34", "0.08"))),
    "self-routing-2": ("SR-2", "self-routing-2-cifar10", (("7.86", "0.12"), ("3.12", "0.13"))),
}
CHOSEN = "chosen on validation images, which are not augmented here, as they are in the code"
CIFAR10_STD = (0.2023, 0.1994, 0.2010)  # of the code; those of the training images are a fifth larger


def system(model: str, data: Set) -> Config:
    """Return the recipe of a network on a set."""
    cifar = data == "cifar10"
    std = CIFAR10_STD if cifar else ()
    changes = AugmentConfig(crop=4, flip=cifar)
    return Config(
        model=ModelConfig(model),
        data=DataConfig(data, standardise="dataset", std=std, augment=changes),
        loss=LossConfig("cross-entropy" if model.startswith("resnet") else "normalised-cross-entropy"),
        optimiser=OptimiserConfig("sgd", lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=ScheduleConfig("step", milestones=(150, 250) if cifar else (100, 150)),
        epochs=350 if cifar else 200,
        batch_size=64,
    )


@recipe(selected=True)
def self_routing_cifar10() -> Config:
    """Self-routing with one routed layer on ResNet-20 (SR-1) on CIFAR-10, 350 epochs; published: 8.17 % test error."""
    return system("self-routing-1-cifar10", "cifar10")


@recipe(selected=True)
def resnet20_cifar10() -> Config:
    """ResNet-20 with average pooling, the control beside self-routing, on CIFAR-10; published: 7.94 % test error."""
    return system("resnet20-cifar10", "cifar10")


@table(PAPER, "table-poster", "poster", "Test error (%) on ResNet-20")
def table_poster() -> Iterator[Cell]:
    for name, (row, model, errors) in ROWS.items():
        for (data, column), (error, spread) in zip(COLUMNS.items(), errors, strict=True):
            how = Train(partial(system, model, data), selected=True) if model else Quoted()
            published = (Published(error, "mean", spread),)
            yield Cell(f"{data}-{name}", row, column, how, published, ERROR, CHOSEN if model else "")
