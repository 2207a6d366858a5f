"""Rows of a comparison, and the rule by which one lies above another.

Heads are compared by the differences of runs with the same seed, which see the same images in the same order, and of
the same precision where there are such. A difference is decided where its interval of 95 % (Student's t, over seeds)
leaves out zero. Two seeds may agree by chance, and on a few hundred images to the image, so they decide nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from math import sqrt
from statistics import mean, stdev
from typing import NamedTuple

from torchcaps.examine.found import Examination
from torchcaps.tables.metrics import ACCURACY, Record
from torchcaps.tables.summary import Summary

FEWEST = 3  # seeds that decide
MIXED = "‡"  # behind a difference of which a pair is of two precisions
# Student's t, of which 95 % lie between minus and plus, by degrees of freedom from 2; for more, the last, a wider one.
T_95 = (4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)


class Row(NamedTuple):
    """A head, and what the lines hold of it."""

    head: str
    accuracy: Summary | None
    cost: Record | None
    parameters: int | None = None  # trainable, counted where there is no line of costs
    examined: tuple[Examination, ...] = ()  # of its runs
    again: tuple[Record, ...] = ()  # all its runs, also those of a seed that has one already; () where each has one


@dataclass(frozen=True)
class Gap:
    """How far one head lies above another, in percentage points of accuracy."""

    differences: tuple[float, ...]  # of runs with the same seed
    mixed: bool = False  # whether a pair is of two precisions

    @property
    def mean(self) -> float:
        """Return their mean."""
        return mean(self.differences)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Return its ends; None for too few seeds, which have none."""
        count = len(self.differences)
        if count < FEWEST:
            return None
        half = T_95[min(count - FEWEST, len(T_95) - 1)] * stdev(self.differences) / sqrt(count)
        return self.mean - half, self.mean + half

    @property
    def side(self) -> int:
        """Return 1: above, -1: below, 0: not decided."""
        low, high = self.interval or (0.0, 0.0)
        return (low > 0) - (high < 0)

    def __str__(self) -> str:
        """Return mean ± standard deviation (seeds), in bold where it is decided."""
        count = len(self.differences)
        spread = f" ± {stdev(self.differences):.2f}" if count > 1 else ""
        text = f"{self.mean:+.2f}{spread} ({count})"
        return (f"**{text}**" if self.side else text) + (f" {MIXED}" if self.mixed else "")


def values(row: Row, key: str = "test_accuracy") -> dict[int, float]:
    """Return accuracy in percent by seed, of runs that ended."""
    records = row.accuracy.records if row.accuracy is not None else ()
    return {each["seed"]: 100 * each[key] for each in records if ACCURACY.read(each) is not None}


def was_run(row: Row) -> bool:
    """Return whether a run of the head ended."""
    return bool(values(row))


def gap(row: Row, other: Row) -> Gap | None:
    """Return how far `row` lies above `other`; None where no seed has a run of both."""
    ours, theirs = _by_seed(row), _by_seed(other)
    pairs = [_alike(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    if not pairs:
        return None
    apart = tuple(100 * (one["test_accuracy"] - another["test_accuracy"]) for one, another in pairs)
    return Gap(apart, any(_precision(one) != _precision(another) for one, another in pairs))


def _by_seed(row: Row) -> dict[int, list[Record]]:
    """Return the runs that ended, by seed; the one that counts for the mean comes first."""
    records = () if row.accuracy is None else (*row.accuracy.records, *row.again)
    found: dict[int, list[Record]] = {}
    for record in records:
        if ACCURACY.read(record) is not None:
            found.setdefault(record["seed"], []).append(record)
    return found


def _alike(ours: list[Record], theirs: list[Record]) -> tuple[Record, Record]:
    """Return a run of each, of one precision where there are such."""
    pairs = list(product(ours, theirs))
    return next((pair for pair in pairs if _precision(pair[0]) == _precision(pair[1])), pairs[0])


def _precision(record: Record) -> str | None:
    return record.get("environment", {}).get("precision")


def by_side(rows: Iterable[Row], other: Callable[[Row], Row]) -> dict[int | None, list[str]]:
    """Return heads by the side of another on which they lie, None where no seed has a run of both."""
    found: dict[int | None, list[str]] = {1: [], -1: [], 0: [], None: []}
    for row in rows:
        apart = gap(row, other(row))
        found[apart if apart is None else apart.side].append(row.head)
    return found


def describe_sides(found: dict[int | None, list[str]]) -> str:
    """Return what `by_side` found, as text."""
    said = f"above {names(found[1])}; below {names(found[-1])}; not decided {names(found[0])}"
    return f"{said}; not run beside it {names(found[None])}" if found[None] else said


def names(found: Iterable[str]) -> str:
    """Return heads as text; "none" of none."""
    return ", ".join(f"`{head}`" for head in found) or "none"
