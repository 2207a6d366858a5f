"""What a report is made of: what the folder of a run says, and what its model does with images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from torchcaps.config import Config
from torchcaps.examine.found import Examination
from torchcaps.forms import SplitName
from torchcaps.inspect.examples import Example
from torchcaps.inspect.measured import Measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from torchcaps.cost import Cost


@dataclass(frozen=True)
class Story:
    """What the folder of a run says."""

    folder: Path
    config: Config
    environment: dict[str, Any]
    history: list[dict[str, Any]]  # the lines of metrics.jsonl
    result: dict[str, Any] | None  # None: the run is not finished
    reason: str  # why it ended early; "" where that is not known
    examination: Examination | None = None  # what `torchcaps examine` wrote

    @property
    def selected(self) -> int | None:
        """Return the epoch whose weights were kept, counted from 1."""
        if self.result is not None:
            return self.result["selected_epoch"]
        measured = [each for each in self.history if each["validation_accuracy"] is not None]
        if not measured:
            return self.history[-1]["epoch"] if self.history else None
        by = self.config.select.replace("-", "_")
        return max(measured, key=lambda line: _rank(line, f"validation_{by}"))["epoch"]


def _rank(line: dict[str, Any], by: str) -> tuple[float, float]:
    """Return by what an epoch is selected; a loss that was not finite is the largest."""
    loss = line["validation_loss"]
    return line.get(by, line["validation_accuracy"]), -math.inf if loss is None else -loss


@dataclass(frozen=True)
class Sight:
    """What the model of a run does."""

    split: SplitName
    images: int  # in the split
    of_run: bool | None  # whether they are those of the run; None: it did not write that down
    classes: tuple[str, ...]
    measured: Measured
    examples: list[Example]
    mistakes: Tensor | None  # [b, c, h, w] in [0, 1], of the first `MISTAKES` of `measured.worst`; None: all is right
    cost: Cost
    word: str  # what a score is called: probability, length or score
    figures: dict[str, Figure]
