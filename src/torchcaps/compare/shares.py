"""Accuracy by the share of the training data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from torchcaps.compare.rows import Row


def by_share(rows: Sequence[Row]) -> dict[str, list[tuple[float, float, float | None]]]:
    """Return for each head its shares that have runs, ascending, with mean accuracy and its standard deviation, None
    of one run.
    """
    found: dict[str, list[tuple[float, float, float | None]]] = defaultdict(list)
    for row in rows:
        head, _, value = row.head.partition("@data.fraction=")
        if value and row.accuracy is not None and row.accuracy.values:
            found[head].append((float(value), row.accuracy.mean, row.accuracy.std))
    return {head: sorted(points) for head, points in found.items()}
