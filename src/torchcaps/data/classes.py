"""Classes of two places, matched by their names."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from torchcaps.data.images import Source
from torchcaps.data.streams import Stream

S = TypeVar("S", bound=Source)


def with_classes(source: S, classes: tuple[str, ...]) -> S:
    """Return the same images with labels that are indices into `classes`, which must hold the names of all of theirs.

    Raises:
        ValueError: for a class that is not among them; shows both lists.
    """
    if source.classes == classes:
        return source
    if unknown := [name for name in source.classes if name not in classes]:
        raise ValueError(
            f"the data have the classes {listed(source.classes)}, and the model {listed(classes)}: "
            f"{unknown[0]!r} is none of the model's"
        )
    if isinstance(source, Stream):
        return replace(source, base=with_classes(source.base, classes))
    places = torch.tensor([classes.index(name) for name in source.classes])
    labels: Tensor = source.labels  # pyright: ignore[reportAttributeAccessIssue] - of all sources but streams
    if labels.ndim == 1:
        moved = places.to(labels.device)[labels]
    else:
        moved = labels.new_zeros(len(labels), len(classes))
        moved[:, places.to(labels.device)] = labels
    return replace(source, labels=moved, classes=classes)  # pyright: ignore[reportArgumentType]


def listed(names: tuple[str, ...], most: int = 20) -> str:
    """Return the names in one line, the first of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"[{', '.join(names[:most])}{more}]"
