"""Accuracy against the share of the training data, as a picture; and how files of such comparisons are called."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torchcaps.compare.comparison import CONTROLS, Comparison
from torchcaps.compare.page import Row, is_control

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def suffix(comparison: Comparison) -> str:
    """Return what stands behind the name of the files of a comparison: of shares or depths, as each has rows of its
    own.
    """
    return "-fractions" if comparison.fractions else "-depth" if comparison.depths else ""


def by_share(rows: Sequence[Row]) -> dict[str, list[tuple[float, float, float]]]:
    """Return for each head its shares that have runs, ascending, with mean accuracy and its standard deviation (0 of
    one).
    """
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for row in rows:
        head, _, value = row.head.partition("@data.fraction=")
        if value and row.accuracy is not None and row.accuracy.values:
            found[head].append((float(value), row.accuracy.mean, row.accuracy.std or 0.0))
    return {head: sorted(points) for head, points in found.items()}


def draw_shares(rows: Sequence[Row]) -> Figure:
    """Return a line for each head, over the share of the training data on a logarithmic axis; controls are dashed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    from torchcaps.inspect.figures import style

    with style():
        figure = Figure(figsize=(6.4, 4), layout="constrained")
        axes = figure.add_subplot()
        curves = by_share(rows)
        for head, points in curves.items():
            shares, means, spreads = zip(*points, strict=True)
            how = "--" if is_control(head) else "-"
            axes.errorbar(shares, means, spreads, fmt=f".{how}", lw=1.2, ms=5, capsize=2, label=head)
        axes.set(xscale="log", xlabel="share of the training data", ylabel="test accuracy (%)")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        if curves:
            axes.legend(fontsize=7, ncols=2 if len(curves) > len(CONTROLS) else 1)
    return figure
