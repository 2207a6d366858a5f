"""What a cell of a table measures, and how it is read from the line of a finished run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]  # a line of results/runs.jsonl


@dataclass(frozen=True)
class Metric:
    name: str
    unit: str
    read: Callable[[Record], float | None]  #: None where the line does not hold it
    lower: bool = False  #: whether less is better
    digits: int = 2  #: behind the point, where it is shown

    def show(self, value: float) -> str:
        return f"{value:.{self.digits}f}"


def _share(key: str, complement: bool = False) -> Callable[[Record], float | None]:
    """Read a share in [0, 1] as percent, or what it lacks to 100."""

    def read(record: Record) -> float | None:
        value = record.get(key)
        return None if value is None else 100 * (1 - value if complement else value)

    return read


def _train_accuracy(record: Record) -> float | None:
    curve = record.get("curve", {}).get("train_accuracy")
    return 100 * curve[-1] if curve else None


def _train_loss(record: Record) -> float | None:
    curve = record.get("curve", {}).get("train_loss")
    return curve[-1] if curve else None


def _class_loss(record: Record) -> float | None:
    """Return the part of the loss that the classes make: all of it where the network adds nothing."""
    curve = record.get("curve", {})
    return curve["train_loss"][-1] - curve.get("train_penalty", [0.0])[-1] if "train_loss" in curve else None


def penalty(name: str) -> Metric:
    """Return the term `name` of what a model adds to its training loss, without its weight, in the last epoch."""

    def read(record: Record) -> float | None:
        terms = record.get("curve", {}).get("penalties", {})
        return terms[name][-1] if name in terms else None

    return Metric(f"penalty {name}, last epoch", "", read, lower=True, digits=4)


def _value(record: Record) -> float | None:
    return record.get("value")


def formula_metric(name: str, unit: str, digits: int) -> Metric:
    """Return the metric of what no run says, but a formula."""
    return Metric(name, unit, lambda record: None, lower=True, digits=digits)


ACCURACY = Metric("test accuracy", "%", _share("test_accuracy"))
ERROR = Metric("test error", "%", _share("test_accuracy", complement=True), lower=True)
EXACT_MATCH = Metric("exact match of all labels", "%", _share("test_accuracy"))
XNODR_TOP2 = Metric("XnODR's top 2, which credits one digit", "%", _share("test_xnodr_top2"))
TOP5_ERROR = Metric("top-5 error", "%", _share("test_top5_accuracy", complement=True), lower=True)
TRAIN_ACCURACY = Metric("training accuracy, last epoch", "%", _train_accuracy)
TRAIN_LOSS = Metric("training loss, last epoch", "", _train_loss, lower=True, digits=4)
CLASS_LOSS = Metric("training loss without the penalty, last epoch", "", _class_loss, lower=True, digits=4)
STEP_TIME = Metric("training time of 100 steps", "s", _value, lower=True)
PARAMETERS = Metric("trainable parameters", "M", _value, lower=True)
STORED = Metric("parameters and running statistics", "M", _value, lower=True, digits=3)
SIZE = Metric("parameters, 4 x MiB of float32", "Mb", _value, lower=True)
MEMORY = Metric("peak memory of the process", "MB", _value, lower=True, digits=0)
LATENCY = Metric("inference time of a batch", "ms", _value, lower=True)
STEP_SECONDS = Metric("time of a training step", "s", _value, lower=True, digits=3)
