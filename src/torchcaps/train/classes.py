"""What a run does about classes of unequal size: weights in its loss, and the measure that selects."""

from __future__ import annotations

import torch
from torch import Tensor

from torchcaps.config import Config
from torchcaps.data import Data, Source
from torchcaps.data.images import Stored


def check_classes(config: Config, data: Data) -> None:
    """Raise ValueError where the measure that selects is not defined for `data`."""
    if config.select != "accuracy" and data.shown != 1:
        raise ValueError(
            f"select is {config.select!r}, which is of images that show one class each; those of {config.data.name} "
            "show several: set it to accuracy"
        )


def class_weights(config: Config, train: Source) -> Tensor | None:
    """Return the weight of each class in the loss that `config` asks for, float32 [classes]; None where all count
    alike.

    Balanced ones are n / (C count): images of each class together count as much as those of any other, and those of an
    average class as without weights. A class without images counts by 1.

    Raises:
        ValueError: for another number of weights than classes, and for balanced ones of images without a list.
    """
    asked, classes = config.loss.class_weights, train.classes
    if asked == "none":
        return None
    if asked == "balanced":
        if not isinstance(train, Stored):
            raise ValueError(
                f"loss.class_weights is 'balanced', but images of {config.data.name} are composed, and have no list "
                "to count: give a number a class"
            )
        counts = count_labels(train.labels.cpu(), len(classes))
        return torch.where(counts > 0, counts.sum() / ((counts > 0).sum() * counts.clamp_min(1)), 1.0).float()
    if len(asked) != len(classes):
        raise ValueError(
            f"loss.class_weights has {len(asked)} numbers, but {config.data.name} has {len(classes)} classes: "
            f"{', '.join(classes[:20])}"
        )
    return torch.tensor(asked, dtype=torch.float32)


def count_labels(labels: Tensor, classes: int) -> Tensor:
    """Return images that show each class: int64 [classes], of labels int64 [n] or label sets [n, classes]."""
    return labels.long().sum(0) if labels.ndim == 2 else torch.bincount(labels, minlength=classes)
