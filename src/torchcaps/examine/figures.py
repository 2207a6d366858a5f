"""Curves of accuracy on changed images, as a figure."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from torchcaps.examine.found import Curve
from torchcaps.inspect.figures import INK, style

UNITS = {"angle": "angle (degrees)", "shift": "shift (pixels)", "scale": "scale", "shear": "shear (degrees)"}


def draw_robustness(curves: Sequence[Curve]) -> Figure:
    """Return a panel for each change: accuracy, and what is kept of the images that are right unchanged, where there
    are such.
    """
    with style():
        figure = Figure(figsize=(2.4 * max(len(curves), 1), 2.4), layout="constrained")
        panels = figure.subplots(1, max(len(curves), 1), sharey=True, squeeze=False)[0]
        for axes, curve in zip(panels, curves, strict=False):
            axes.plot(curve.values, curve.accuracy, ".-", color=INK["accent"], label="accuracy")
            kept = [(value, share) for value, share in zip(curve.values, curve.kept, strict=True) if share is not None]
            if kept:
                axes.plot(*zip(*kept, strict=True), ".--", color=INK["second"], label="kept")
            axes.set(xlabel=UNITS.get(curve.by, curve.by), ylim=(0, 1.02))
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        panels[0].legend()
    return figure
