"""Accuracy by the share of the training data; and how files of such comparisons are called."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from torchcaps.compare.comparison import Comparison
from torchcaps.compare.rows import Row


def suffix(comparison: Comparison) -> str:
    """Return what stands behind the name of the files of a comparison: of shares, depths or the field of a sweep, as
    each has rows of its own.
    """
    if comparison.sweep:
        return f"-{comparison.sweep[0].replace('-', '_')}"
    return "-fractions" if comparison.fractions else "-depth" if comparison.depths else ""


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
