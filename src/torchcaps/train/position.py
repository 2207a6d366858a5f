"""Where a run stands."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torchcaps.train.meter import Score


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

    def end_epoch(self, record: dict) -> None:
        """Begin the next epoch; `record` is the line of the one that has ended."""
        self.history.append(record)
        self.epoch += 1
        self.step = 0
        self.seconds += self.epoch_seconds
        self.epoch_seconds = 0.0

    def select(self, validation: Score | None) -> bool:
        """Whether the epoch that has ended is the best so far, which is noted; without validation each is."""
        best = self.selected_accuracy, -self.selected_loss
        if validation is not None and best[0] is not None and not (validation.accuracy, -validation.loss) > best:
            return False
        self.selected_epoch = self.epoch
        if validation is not None:
            self.selected_accuracy, self.selected_loss = validation.accuracy, validation.loss
        return True
