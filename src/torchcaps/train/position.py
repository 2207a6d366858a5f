"""Where a run stands, and the clock that adds to it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Literal

from torchcaps.train.meter import Score

Measure = Literal["accuracy", "mean-class-accuracy"]


@dataclass
class Position:
    """What a checkpoint holds beside the states of modules and optimisers."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the epoch that has begun
    epoch_seconds: float = 0.0  # spent on these steps
    seconds: float = 0.0  # spent on the finished epochs
    selected_epoch: int = 0  # counted from 1
    selected_accuracy: float | None = None  # on the validation split
    selected_loss: float = math.inf  # the same; it decides between epochs of equal accuracy
    history: list[dict] = field(default_factory=list)  # the lines of metrics.jsonl
    cpu_seconds: float = 0.0  # of all threads of this process, as far as the last look at the clock
    selected_by: float | None = None  # what the selected epoch has of the measure that selects

    def end_epoch(self, record: dict) -> None:
        """Begin the next epoch; `record` is the line of the one that has ended."""
        self.history.append(record)
        self.epoch += 1
        self.step = 0
        self.seconds += self.epoch_seconds
        self.epoch_seconds = 0.0

    def select(self, validation: Score | None, by: Measure = "accuracy") -> bool:
        """Return whether the epoch that has ended is the best so far, which is noted; without validation each is.

        `by` is the measure that decides, and the loss where it is equal.
        """
        value = None if validation is None else measured(validation, by)
        best = self.selected_accuracy if self.selected_by is None else self.selected_by
        if validation is not None and best is not None and not (value, -validation.loss) > (best, -self.selected_loss):
            return False
        self.selected_epoch = self.epoch
        if validation is not None:
            self.selected_accuracy, self.selected_loss = validation.accuracy, validation.loss
            self.selected_by = value
        return True


class Clock:
    """What time has passed since it was looked at last, on the wall and on the processors."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """Leave out what has passed so far."""
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def tick(self, position: Position) -> None:
        """Add the time since the last look to the epoch that `position` is in."""
        wall, cpu = self._wall, self._cpu
        self.restart()
        position.epoch_seconds += self._wall - wall
        position.cpu_seconds += self._cpu - cpu


def measured(score: Score, by: Measure) -> float:
    """Return what `score` has of the measure `by` that selects."""
    value = score.accuracy if by == "accuracy" else score.mean_class_accuracy
    assert value is not None, by
    return value
