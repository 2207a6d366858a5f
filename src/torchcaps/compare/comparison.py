"""What is compared: the same network, data, optimiser and loss, and heads that differ in their routing alone.

A plain network's linear head and uniform routing stand beside the others: what does not beat them has not paid.
Nothing here imports torch before a comparison is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from torchcaps.config import (
    AugmentConfig,
    CoefficientConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimiserConfig,
    Option,
    ScheduleConfig,
)
from torchcaps.data.catalogue import find
from torchcaps.names import unknown
from torchcaps.tables.cells import Cell, Train
from torchcaps.tables.metrics import ACCURACY

Loss = Literal["shared", "own"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
LINEAR = "linear"
CONTROLS = (LINEAR, "uniform")  # in front, in every table
EPOCHS = 60  # of the budget `full`
ITERATIONS = 3
# Of routing towards discriminative quality. A step of 4e-3 lost classes with the shared loss, from 0.1 and from 0.15;
# the rule of docs/discriminative-routing.md, found with the margin loss, allows 1.8e-3 and 4e-3 there.
COEFFICIENT_STEP = 2e-4
MIRRORED = ("fashion-mnist", "cifar10", "cifar100")  # sets whose classes a mirror leaves as they are


@dataclass(frozen=True)
class Comparison:
    """Heads on `backbone`, trained on `data`.

    With the loss "shared" every head is trained by softmax cross-entropy of its scores times a learnt number; with
    "own" by the loss of its paper (`Spec.loss`), and the linear head by cross-entropy.
    """

    backbone: str = "small-resnet"
    data: str = "fashion-mnist"
    loss: Loss = "shared"

    @property
    def id(self) -> str:
        """BACKBONE/DATA, and "own-loss" behind it where that is so."""
        return f"{self.backbone}/{self.data}" + ("/own-loss" if self.loss == "own" else "")

    def cells(self, heads: Sequence[str]) -> list[Cell]:
        """One cell for each of `heads`, names of routings or "linear"."""
        return [
            Cell(head, head, "test accuracy", Train(partial(self.config, head)), metric=ACCURACY, home=self.home)
            for head in heads
        ]

    @property
    def home(self) -> str:
        """What the names of the cells begin with."""
        return f"compare/{self.id}"

    def config(self, head: str) -> Config:
        """The complete config of one head, of the budget `full`."""
        options: dict[str, Option] = {} if head == LINEAR else {"iterations": ITERATIONS}
        loss, coefficients = LossConfig("cross-entropy"), CoefficientConfig()
        if head != LINEAR:
            from torchcaps.routing import routing_class

            spec = routing_class(head).spec
            if spec.objective:
                coefficients = CoefficientConfig(lr=COEFFICIENT_STEP)
            if self.loss == "own":
                loss = LossConfig(spec.loss)
            else:
                options["scaled"] = True
        return Config(
            model=ModelConfig(f"{self.backbone}.{head}", options),
            data=DataConfig(self.data, standardise="dataset", augment=self._augment()),
            loss=loss,
            optimiser=OptimiserConfig("adam", lr=2e-3),
            schedule=ScheduleConfig("one-cycle"),
            coefficients=coefficients,
            epochs=EPOCHS,
        )

    def _augment(self) -> AugmentConfig:
        """Shifts of an eighth of the side at most, as is common for CIFAR; mirrors where they keep the class."""
        side = find(self.data)[0].image_size
        return AugmentConfig(shift=max(1, side // 8) if isinstance(side, int) else 4, flip=self.data in MIRRORED)


def all_heads() -> list[str]:
    """The controls, then every other routing by name."""
    from torchcaps.routing import list_routings

    names = [spec.name for spec in list_routings()]
    return [*CONTROLS, *(name for name in names if name not in CONTROLS)]


def choose_heads(wanted: Sequence[str]) -> list[str]:
    """`wanted`, or all heads where none is; the controls are always among them, in front.

    Raises:
        ValueError: for a name that is none; the nearest is named.
    """
    every = all_heads()
    for name in wanted:
        if name not in every:
            raise unknown("routing", name, every, "`torchcaps list routings` shows all; 'linear' is the plain head")
    return every if not wanted else [name for name in every if name in wanted or name in CONTROLS]
