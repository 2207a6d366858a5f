"""What runs of `torchcaps compare` on shares of the images say of each head, and how far one lies above another.

The pages' rule stands here: heads are compared by the differences of runs with the same seed, which see the same images
in the same order, and a difference is decided where its interval of 95 % (Student's t, over seeds) leaves out zero.
Two seeds may agree by chance, and on a few hundred images to the image, so they decide nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import sqrt
from statistics import mean, stdev

from torchcaps.compare.comparison import TWIN, Comparison, all_heads, choose_heads
from torchcaps.compare.examined import find_examinations
from torchcaps.compare.page import Row
from torchcaps.tables.budgets import apply_budget
from torchcaps.tables.metrics import ACCURACY, Record
from torchcaps.tables.summary import summarise

DATA = "cifar10"
FEWEST = 3  # seeds that decide
SHARES = (0.01, 0.1, 1.0)
UNIFORM = "uniform"
ROUTINGS = (
    "dynamic",
    "fm",
    "xnidr",
    "inverted-attention",
    "em",
    "self-attention",
    "self-routing",
    "variational-bayes",
)
# Student's t, of which 95 % lie between minus and plus, by degrees of freedom from 2; for more, the last, a wider one.
T_95 = (4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)
Rows = Mapping[str, Row]


@dataclass(frozen=True)
class Gap:
    """How far one head lies above another, in percentage points of accuracy."""

    differences: tuple[float, ...]  # of runs with the same seed

    @property
    def mean(self) -> float:
        return mean(self.differences)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Its ends; None for too few seeds, which have none."""
        count = len(self.differences)
        if count < FEWEST:
            return None
        half = T_95[min(count - FEWEST, len(T_95) - 1)] * stdev(self.differences) / sqrt(count)
        return self.mean - half, self.mean + half

    @property
    def side(self) -> int:
        """1: above, -1: below, 0: not decided."""
        low, high = self.interval or (0.0, 0.0)
        return (low > 0) - (high < 0)

    def __str__(self) -> str:
        """Mean ± standard deviation (seeds), in bold where it is decided."""
        count = len(self.differences)
        spread = f" ± {stdev(self.differences):.2f}" if count > 1 else ""
        text = f"{self.mean:+.2f}{spread} ({count})"
        return f"**{text}**" if self.side else text


def heads() -> list[str]:
    """The controls, the routings that were run on shares of the images, and the twins of those of other sizes."""
    return choose_heads(ROUTINGS)


def collect(records: Sequence[Record], share: float, data: str, names: Sequence[str]) -> Rows:
    """What the lines hold of the heads `names`, trained on a share of `data` with the budget `cpu`."""
    comparison, found = Comparison(data=data, fractions=(share,)), {}
    for cell in comparison.cells(names):
        assert cell.build is not None
        examined = find_examinations(records, apply_budget(cell.build(), "cpu", cell))
        head = cell.name.partition("@")[0]
        found[head] = Row(head, summarise(cell, "cpu", records), None, examined=tuple(examined))
    return found


def values(row: Row, key: str = "test_accuracy") -> dict[int, float]:
    """Accuracy in percent by seed, of runs that ended."""
    records = row.accuracy.records if row.accuracy is not None else ()
    return {each["seed"]: 100 * each[key] for each in records if ACCURACY.read(each) is not None}


def was_run(row: Row) -> bool:
    return bool(values(row))


def gap(row: Row, other: Row) -> Gap | None:
    """How far `row` lies above `other`; None where no seed has a run of both."""
    ours, theirs = values(row), values(other)
    shared = sorted(ours.keys() & theirs.keys())
    return Gap(tuple(ours[seed] - theirs[seed] for seed in shared)) if shared else None


def twin_of(head: str, rows: Rows) -> Row:
    """The convolutional network of a head's size."""
    return rows.get(f"{head}-{TWIN}", rows[TWIN])


def capsules(rows: Rows) -> list[Row]:
    """Of heads with capsules, those that were run: without routing first."""
    return [rows[head] for head in (UNIFORM, *ROUTINGS) if was_run(rows[head])]


def chosen(candidates: Sequence[Row]) -> Row | None:
    """The one that is best on validation, so that the test split, which it is judged by, had no say."""
    return max(candidates, key=lambda row: mean(values(row, "validation_accuracy").values()), default=None)


def by_side(rows: Iterable[Row], other: Callable[[Row], Row]) -> dict[int | None, list[str]]:
    """Heads by the side of another on which they lie, None where no seed has a run of both."""
    found: dict[int | None, list[str]] = {1: [], -1: [], 0: [], None: []}
    for row in rows:
        apart = gap(row, other(row))
        found[apart if apart is None else apart.side].append(row.head)
    return found


def better(*gaps: Gap | None) -> str:
    """Whether what is compared lies above all that it is compared with: None where that was not run."""
    sides = [found.side for found in gaps if found is not None]
    if -1 in sides:
        return "no"
    return "a control is not run" if None in gaps else "yes" if all(side == 1 for side in sides) else "not decided"


class Study:
    """The lines of results/runs.jsonl, of which the same is asked again and again."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self.rows = cache(self._rows)
        self.whole = cache(self._whole)

    def _rows(self, share: float) -> Rows:
        """Heads on a share of CIFAR-10."""
        return collect(self.records, share, DATA, heads())

    def _whole(self, data: str) -> Rows:
        """Every head on all images of `data`."""
        return collect(self.records, 1.0, data, all_heads())
