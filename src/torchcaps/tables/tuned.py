"""What the budget `fast` takes in place of a paper's batch, rate and regularisation, found on validation images.

An entry is chosen among short runs on a tenth of the training split that is held out (`benchmarks/tune.py`), whose
lines stand in results/tuning.jsonl. No test image is looked at. There is no entry yet: `fast` keeps what a paper gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torchcaps.config import Config


@dataclass(frozen=True)
class Tuned:
    """What a family of models trains with in 30 epochs."""

    family: str  #: shell pattern of names of models
    apply: Callable[[Config], Config]

    def of(self, config: Config) -> bool:
        """Return whether the model of `config` is one of the family."""
        return fnmatchcase(config.model.name, self.family)


TUNED: tuple[Tuned, ...] = ()
