"""Draw pictures/do-capsules-help.svg: accuracy of each head against the share of the images, from results/runs.jsonl.

python docs/draw_help.py

`docs/blocks.py` writes the tables of the same page (do-capsules-help.md), and this picture with them.
"""

from __future__ import annotations

import io
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

from help_runs import ROUTINGS, SHARES, UNIFORM, Study, twin_of

from torchcaps.compare.rows import gap, values
from torchcaps.inspect.figures import INK, style
from torchcaps.names import LINEAR, TWIN
from torchcaps.tables.records import read_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
RUNS = HERE.parent / "results" / "runs.jsonl"
PICTURE = HERE / "pictures" / "do-capsules-help.svg"
HEADS = (TWIN, LINEAR, UNIFORM, *ROUTINGS)
MARKS = "sDoov^<>PXd"  # of HEADS
COLOURS = (INK["muted"], INK["muted"], INK["ink"], *(f"C{number}" for number in (0, 1, 2, 3, 4, 5, 6, 9)))
APART = 1.055  # factor between heads beside each other on the axis of shares
Point = tuple[float, tuple[float, ...]]  # a share, and a value for each seed


def draw(study: Study) -> Figure:
    """Accuracy on the left, what lies between it and the twin's on the right: a line for each head.

    An empty mark is of a single seed, and has no deviation.
    """
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(10, 5), layout="constrained")
        left, right = figure.subplots(1, 2)
        for number, head in enumerate(HEADS):
            _line(left, number, accuracies(study, head))
            _line(right, number, differences(study, head))
        left.set(ylabel="test accuracy (%)")
        right.set(ylabel="percentage points above its twin")
        right.axhline(0, color=INK["ink"], lw=0.8)
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set(xlabel="share of the training images", xlim=(min(SHARES) / 1.6, max(SHARES) * 1.6))
            axes.set_xticks(SHARES, [f"{share:.0%}" for share in SHARES])
            axes.minorticks_off()
        if handles := left.get_legend_handles_labels()[0]:
            figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8)
    return figure


def accuracies(study: Study, head: str) -> list[Point]:
    """Test accuracies by share, of those that were run."""
    found = ((share, tuple(values(study.rows(share)[head]).values())) for share in SHARES)
    return [(share, each) for share, each in found if each]


def differences(study: Study, head: str) -> list[Point]:
    """Percentage points above the head's own twin, by share, where both were run."""
    if head == TWIN:
        return []
    tables = ((share, study.rows(share)) for share in SHARES)
    found = ((share, gap(rows[head], twin_of(head, rows))) for share, rows in tables)
    return [(share, each.differences) for share, each in found if each is not None]


def _line(axes: Axes, number: int, points: list[Point]) -> None:
    """Draw a head's means and deviations, beside those of the others."""
    if not points:
        return
    head, colour = HEADS[number], COLOURS[number]
    places = [share * APART ** (number - len(HEADS) / 2) for share, _ in points]
    means = [mean(each) for _, each in points]
    how = "--" if head in (TWIN, LINEAR) else "-"
    axes.plot(places, means, how, color=colour, lw=1)
    for place, height, (_, each) in zip(places, means, points, strict=True):
        spread, full = (stdev(each), colour) if len(each) > 1 else (None, "none")
        axes.errorbar(place, height, spread, color=colour, fmt=MARKS[number], ms=5, mfc=full, lw=1, capsize=2)
    axes.plot([], [], f"{MARKS[number]}{how}", color=colour, ms=5, lw=1, label=head)


def svg(study: Study) -> str:
    """The picture, the same text for the same lines."""
    file = io.StringIO()
    with style():
        draw(study).savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def main() -> None:
    PICTURE.write_text(svg(Study(read_records(RUNS))), encoding="utf-8")


if __name__ == "__main__":
    main()
