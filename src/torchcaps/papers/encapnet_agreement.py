"""What cells say of how votes agree with their parents as a network learns (EncapNet's figure 2), by lines of runs."""

from __future__ import annotations

from torchcaps.tables.metrics import Metric, Record


def opposed(stage: int) -> Metric:
    """Return the share, of the votes for the true class, of those of the lowest step of the cosine, from -1 to -0.9."""
    return Metric("votes that oppose their parent", "%", lambda record: _top(record, stage, "share", 0), lower=True)


def length_alike(stage: int) -> Metric:
    """Return mean length of the votes for the true class in the highest step of the cosine, from 0.9 to 1."""
    return Metric("length of votes like their parent", "", lambda record: _top(record, stage, "length", -1), digits=4)


def _top(record: Record, stage: int, name: str, step: int) -> float | None:
    """Return the agreement of the class capsules."""
    stages = record.get("agreement")
    return list(stages[stage]["layers"].values())[-1][name][step] if stages else None
