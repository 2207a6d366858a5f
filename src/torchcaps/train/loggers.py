"""What a run says to loggers of Fabric: loss and accuracy of each step, and the line of each epoch."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from lightning_fabric.loggers.csv_logs import CSVLogger
from lightning_fabric.loggers.logger import Logger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from torch import distributed

from torchcaps.config import Config, to_plain
from torchcaps.extras import missing_extra
from torchcaps.names import check_choice
from torchcaps.train.callbacks import Callback
from torchcaps.train.run import Result

Name = Literal["csv", "tensorboard", "wandb"]
NEEDS: dict[Name, tuple[str, ...]] = {"csv": (), "tensorboard": ("tensorboard",), "wandb": ("wandb",)}
PROJECT = "torchcaps"  # of Weights & Biases
STEP = "global_step"  # by which it draws all else


class Logged(Callback):
    """Hands a run to loggers, in the first of its processes alone.

    Args:
        loggers: of Fabric, or names: csv, tensorboard and wandb, which write to the folder of the run. Weights & Biases
            takes its settings from the environment, such as WANDB_MODE=offline, WANDB_PROJECT and WANDB_NAME; a run of
            it that the program has open is written to, and stays open.

    Raises:
        TypeError: for what is neither.
        ValueError: for another name, and where a package is not installed.
    """

    def __init__(self, loggers: Sequence[Name | Logger]):
        for each in loggers:
            if not isinstance(
                each, str
            ):  # of `lightning_fabric`, or of its twin in lightning, whose classes are others
                if not all(hasattr(each, name) for name in ("log_metrics", "log_hyperparams", "save", "finalize")):
                    raise TypeError(f"a logger is {each!r}; it must be one of Fabric, or a name: {', '.join(NEEDS)}")
                continue
            check_choice("log", each, NEEDS)
            for package in NEEDS[each]:
                if find_spec(package) is None:
                    raise ValueError(missing_extra(ModuleNotFoundError(name=package)))
        self.asked = tuple(loggers)
        self.loggers: list[Logger] = []
        self.last = 0  # step of the last record; of a run whose epochs were done already there is none
        self.status = "failed"

    def on_start(self, folder: Path, config: Config) -> None:
        if distributed.is_initialized() and distributed.get_rank():
            return
        self.loggers = [build_logger(each, folder) if isinstance(each, str) else each for each in self.asked]
        for each in self.loggers:
            with suppress(NotImplementedError):  # Fabric's CSV has no place for them
                each.log_hyperparams(to_plain(config))

    def on_step(self, step: int, loss: float, accuracy: float) -> None:
        self._log({"step_loss": loss, "step_accuracy": accuracy}, step)

    def on_record(self, record: Mapping[str, Any]) -> None:
        self._log(flatten(record), record["step"])
        self.last = record["step"]

    def on_end(self, result: Result) -> None:
        self._log({"test_accuracy": result.test_accuracy}, self.last)
        self.status = "success"

    def close(self) -> None:
        for each in self.loggers:
            each.save()
            each.finalize(self.status)
        self.loggers = []

    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        for each in self.loggers:
            each.log_metrics(dict(metrics), step)


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of a record by name, those of records in it by both names with a slash between."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{name}/")
        elif isinstance(value, numbers.Real) and not isinstance(value, bool):
            found[prefix + name] = float(value)
    return found


def build_logger(name: Name, folder: Path) -> Logger:
    """Return the logger `name`, writing to a folder of that name in `folder`, a new version of it where a run goes
    on.
    """
    if name == "csv":
        return CSVLogger(folder, name="csv")
    if name == "tensorboard":
        return TensorBoardLogger(folder, name="tensorboard", default_hp_metric=False)
    return WandbLogger(folder)


class WandbLogger(Logger):
    """A run of Weights & Biases, named as the folder that it writes to, or the one that is open.

    That package's own logger for Fabric wants all of Lightning.
    """

    def __init__(self, folder: Path):
        import wandb  # pyright: ignore[reportMissingImports] - an extra

        self._open: Any = wandb.run  # the caller's, as within a sweep: it is written to, and not ended
        project, name = os.environ.get("WANDB_PROJECT", PROJECT), os.environ.get("WANDB_NAME", folder.name)
        self._run: Any = self._open
        if self._run is None:
            self._run = wandb.init(project=project, name=name, dir=str(folder))
            self._run.define_metric("*", step_metric=STEP)

    @property
    def name(self) -> str:
        """Return the name of the project."""
        return self._run.project

    @property
    def version(self) -> str:
        """Return the run's own identifier."""
        return self._run.id

    def log_hyperparams(self, params: Mapping[str, Any], *_: Any, **__: Any) -> None:
        self._run.config.update(params, allow_val_change=True)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._run.log({**metrics, STEP: step})

    def finalize(self, status: str) -> None:
        if self._open is None:
            self._run.finish(exit_code=0 if status == "success" else 1)
