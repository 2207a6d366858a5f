"""Pictures of a comparison: accuracy against cost, and against the share of the training data."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from torchcaps.compare.comparison import CONTROLS
from torchcaps.compare.page import accuracy_of, deviation_of, is_control
from torchcaps.compare.rows import Row
from torchcaps.compare.shares import by_share
from torchcaps.inspect.figures import INK, style

PANELS = {"step_ms": "training step of 128 images (ms)", "latency_128_ms": "latency of 128 images (ms)"}


def draw(rows: Sequence[Row]) -> Figure:
    """Return a figure of test accuracy and its deviation, against the time of a training step and the latency of a
    batch of 128.
    """
    with style():
        figure = Figure(figsize=(10, 4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        known = sorted((row for row in rows if row.cost is not None and accuracy_of(row)), key=accuracy_of)
        for axes, (key, label) in zip(panels, PANELS.items(), strict=True):
            for row in known:
                assert row.cost is not None
                colour = INK["second" if row.head in CONTROLS else "accent"]
                deviation = deviation_of(row) or 0.0
                axes.errorbar(row.cost[key], accuracy_of(row), deviation, fmt="o", ms=4, color=colour, capsize=2, lw=1)
            axes.set(xlabel=label)
            axes.set_xlim(left=0)
            axes.margins(x=0.05)
        panels[0].set_ylabel("test accuracy (%)")
        for axes, key in zip(panels, PANELS, strict=True):  # whose limits are known now
            _name(axes, known, key)
    return figure


def _name(axes: Axes, rows: Sequence[Row], key: str) -> None:
    """Write the names of the heads, from the least accurate up, beside `axes` with a line from each to its point, no
    name on another.
    """
    low, high = axes.get_ylim()
    places = apart([(accuracy_of(row) - low) / (high - low) for row in rows], 0.06)
    for row, place in zip(rows, places, strict=True):
        assert row.cost is not None
        axes.annotate(
            row.head,
            (row.cost[key], accuracy_of(row)),
            (1.04, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=INK["ink"],
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": INK["ink"], "alpha": 0.5},
        )


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Return `places`, which ascend, moved as little as pushing allows until each is `gap` above the one before."""
    groups: list[tuple[float, int]] = []  # middle and size of what has been pushed together
    for place in places:
        middle, size = place, 1
        while groups and middle - (size - 1) * gap / 2 - (groups[-1][0] + (groups[-1][1] - 1) * gap / 2) < gap:
            other, count = groups.pop()
            middle, size = (middle * size + other * count) / (size + count), size + count
        groups.append((middle, size))
    return [middle + (n - (size - 1) / 2) * gap for middle, size in groups for n in range(size)]


def draw_shares(rows: Sequence[Row]) -> Figure:
    """Return a line for each head, over the share of the training data on a logarithmic axis; controls are dashed."""
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
