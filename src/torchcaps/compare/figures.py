"""Pictures of a comparison: accuracy against cost, and against the share of the training data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from torchcaps.compare.heads import CONTROLS, is_control
from torchcaps.compare.page import accuracy_of, deviation_of
from torchcaps.compare.rows import Row
from torchcaps.compare.shares import by_share
from torchcaps.inspect.figures import INK, style

COLOURS = matplotlib.colormaps["tab20"].colors  # pyright: ignore[reportAttributeAccessIssue]
MARKERS = "osD^"  # of heads beyond so many
PANELS = {"step_ms": "training step of 128 images (ms)", "latency_128_ms": "latency of 128 images (ms)"}


def draw(rows: Sequence[Row]) -> Figure:
    """Return a figure of test accuracy and its deviation, against the time of a training step and the latency of a
    batch of 128. Of a single run, which has no deviation, the mark is empty.
    """
    with style():
        figure = Figure(figsize=(10, 4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        known = sorted((row for row in rows if row.cost is not None and accuracy_of(row)), key=accuracy_of)
        for axes, (key, label) in zip(panels, PANELS.items(), strict=True):
            for row in known:
                assert row.cost is not None
                deviation = deviation_of(row)
                how = _mark(INK["second" if is_control(row.head) else "accent"], deviation is not None)
                axes.errorbar(row.cost[key], accuracy_of(row), deviation, capsize=2, lw=1, **how)
            axes.set(xlabel=label)
            axes.set_xlim(left=0)
            axes.margins(x=0.05)
        panels[0].set_ylabel("test accuracy (%)")
        if known:
            panels[0].legend(handles=_legend(known), fontsize=7)
        for axes, key in zip(panels, PANELS, strict=True):  # whose limits are known now
            _name(axes, known, key)
    return figure


def _mark(colour: Any, several: bool, marker: str = "o") -> dict[str, Any]:
    """Return how a mean is marked: filled where it is of several runs."""
    return {"marker": marker, "linestyle": "", "ms": 4, "color": colour, "mfc": colour if several else "none"}


def _legend(rows: Sequence[Row]) -> list[Line2D]:
    """Return what the marks of `rows` mean."""
    marks = {
        "routing": (any(not is_control(row.head) for row in rows), _mark(INK["accent"], True)),
        "control": (any(is_control(row.head) for row in rows), _mark(INK["second"], True)),
        "a single run": (any(deviation_of(row) is None for row in rows), _mark(INK["muted"], False)),
    }
    return [Line2D([], [], label=label, **how) for label, (there, how) in marks.items() if there]


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
    """Return a line for each head, over the share of the training data on a logarithmic axis; controls are dashed, and
    the mark of a single run, which has no deviation, is empty.
    """
    with style():
        figure = Figure(figsize=(6.4, 4), layout="constrained")
        axes = figure.add_subplot()
        curves = by_share(rows)
        for n, (head, points) in enumerate(curves.items()):
            colour, marker = COLOURS[n % len(COLOURS)], MARKERS[n // len(COLOURS) % len(MARKERS)]
            line = {"color": colour, "lw": 1.2, "linestyle": "--" if is_control(head) else "-"}
            axes.plot(*zip(*(point[:2] for point in points), strict=True), label=head, **line)
            for share, mean, spread in points:
                axes.errorbar(share, mean, spread, capsize=2, lw=1.2, **_mark(colour, spread is not None, marker))
        axes.set(xscale="log", xlabel="share of the training data", ylabel="test accuracy (%)")
        measured = {f"{share:.6g}" for points in curves.values() for share, *_ in points}
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{100 * value:g}%" if f"{value:.6g}" in measured else "")
        if curves:
            axes.legend(fontsize=7, ncols=2 if len(curves) > len(CONTROLS) else 1)
    return figure
