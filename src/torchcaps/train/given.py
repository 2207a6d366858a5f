"""What is handed to `fit` in Python beside a config: weights to begin with, a module, data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from torchcaps.config import EXTERNAL, Config, DataConfig, ModelConfig
from torchcaps.data import Data, load_data
from torchcaps.data.given import given_data, is_loader
from torchcaps.data.loaders import batch_size_of
from torchcaps.losses import takes_scores, usual_loss
from torchcaps.models import Model, create_model
from torchcaps.models.external import as_model, try_out
from torchcaps.train.start import Start, find_start


class Given(NamedTuple):
    """See `torchcaps.train.fit`."""

    start: Start | None = None
    model: nn.Module | None = None
    data: Any = None

    def settle(self, config: Config, resume: bool) -> Config:
        """Return `config` as the run records it: a module and data of the user's own are "external", and have no
        options.

        Raises:
            ValueError: for a config whose weights, module or data are not given; for a DataLoader in several processes.
        """
        data = config.data
        if self.data is not None:
            if data.test is not None:
                raise ValueError(f"data.test is {data.test!r}, but data is given: give the images of its 'test' beside")
            data = replace(data, name=EXTERNAL, root=None, test=None)
        config = replace(
            config,
            start=config.start if self.start is None else self.start.record,
            model=config.model if self.model is None else ModelConfig(EXTERNAL),
            data=data,
        )
        for name, part, given in (("model", config.model, self.model), ("data", config.data, self.data)):
            if part.name == EXTERNAL and given is None:
                raise ValueError(f"{name}.name is {EXTERNAL!r}: fit needs the {name} itself again, as {name}=...")
        if config.start and self.start is None and not resume:
            raise ValueError(
                f"the run began with the weights of {config.start.rpartition(' ')[0]}: give its folder as start=..."
            )
        if not is_loader(self.data):
            return config
        if config.processes > 1:
            raise ValueError(
                f"data is a DataLoader, and there are {config.processes} processes, each of which would see all of it: "
                "give the Dataset instead"
            )
        train = self.data["train"] if isinstance(self.data, Mapping) else self.data
        return replace(config, batch_size=batch_size_of(train)) if isinstance(train, DataLoader) else config

    def load_data(self, config: DataConfig, device: torch.device) -> Data:
        """Return the data that were given, else those that `config` names."""
        return load_data(config, device) if self.data is None else given_data(self.data, config, device)

    def create_model(self, shape: dict[str, Any], config: Config) -> Model:
        """Return the module that was given, else the one that `shape` describes.

        Raises:
            ValueError: for a module that does not give one score a class, or scores that the loss is not meant for.
        """
        if self.model is None:
            return create_model(**shape)
        bare = {name: value for name, value in shape.items() if name != "name"}
        model = as_model(self.model, bare)
        place = next((each.device for each in self.model.parameters()), torch.device("cpu"))
        _check_loss(model, try_out(model, bare, place), config)
        return model


def give(start: str | Path | None, model: nn.Module | None, data: Any) -> Given:
    """Return what was handed to `fit`; raises as `find_start`."""
    return Given(None if start is None else find_start(start), model, data)


def _check_loss(model: Model, scores: Tensor, config: Config) -> None:
    """Raise ValueError where the loss takes lengths or probabilities, and the scores are seen to be neither."""
    outside = bool(((scores < 0) | (scores > 1)).any())
    kind = model.scores or ("logit" if outside else None)
    if not takes_scores(config.loss.name, kind):
        what = f"{kind}s" if model.scores else "outside [0, 1]"
        raise ValueError(
            f"loss.name is {config.loss.name!r}, but the scores of the module are {what}: take {usual_loss(kind)!r}"
        )
