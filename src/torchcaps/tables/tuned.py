"""What the budget `fast` takes in place of a paper's batch, rate and regularisation, found on validation images.

An entry is the best of its family among short runs on a tenth of the training split that is held out
(`benchmarks/tune.py`), whose lines stand in results/tuning.jsonl. No test image is looked at. A family without an entry
keeps what its paper gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from torchcaps.config import Config
from torchcaps.fields import replace_field


@dataclass(frozen=True)
class Tuned:
    """What a family of models trains with in 30 epochs."""

    family: str  #: shell pattern of names of models
    changes: str  #: of the recipe, as `change` takes them and as they stand in the line of the trial

    def of(self, config: Config) -> bool:
        """Return whether the model of `config` is one of the family."""
        return fnmatchcase(config.model.name, self.family)


def change(config: Config, text: str) -> Config:
    """Return `config` with NAME=VALUE,NAME=VALUE, such as optimiser.lr=0.1,batch_size=256, as `replace_field` has each.

    Raises:
        ValueError: for a field that no config has, and a value that it does not take.
    """
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        config = replace_field(config, name, value)
    return config


TUNED: tuple[Tuned, ...] = (
    Tuned("cnn-6*", "optimiser.lr=0.003"),
    Tuned("encapnet-6-*", "optimiser.lr=0.003"),
    Tuned("mobilenetv2_100.*", "batch_size=128,optimiser.lr=0.003"),
)
