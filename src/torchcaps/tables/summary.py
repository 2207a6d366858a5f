"""What the lines of results/runs.jsonl say of a cell, beside what was published; no number comes from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from torchcaps.data.facts import missing_data
from torchcaps.tables.ahead import count_ahead
from torchcaps.tables.budget_names import COUNT, EVIDENCE, FORMULA, FULL, REPRODUCTIONS, SMOKE, Budget
from torchcaps.tables.budgets import apply_budget, width
from torchcaps.tables.cells import Cell, Combine, Count, Formula, Impossible, Published, Quoted, Train, find_cell
from torchcaps.tables.metrics import Record
from torchcaps.tables.records import count_hash, find_runs


@dataclass(frozen=True)
class Summary:
    """The runs of a cell in one budget."""

    budget: str
    width: str  # of the narrowed network; empty where it is the recipe's own
    values: tuple[float, ...]  # by seed
    records: tuple[Record, ...]  # all of them, also those that failed
    lower: bool  # whether less is better

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def std(self) -> float | None:
        """Return the deviation of the sample; None for a single run."""
        return stdev(self.values) if len(self.values) > 1 else None

    def best(self, runs: int | None = None) -> float:
        """Return the best of the first `runs` seeds, or of all."""
        return (min if self.lower else max)(self.values[:runs])

    @property
    def failures(self) -> list[str]:
        return [record["failure"] for record in self.records if "failure" in record]


def summarise(cell: Cell, budget: Budget, records: Sequence[Record]) -> Summary | None:
    """Return the runs of `cell` in `budget`, or its count or formula, whatever the budget; None where there is none."""
    match cell.how:
        case Train():
            found = find_runs(records, apply_budget(cell.how.build(), budget, cell), budget)
        case Count():
            name = count_hash(cell.how.build())
            found = [each for each in records if (each.get("cell"), each.get("config_hash")) == (cell.id, name)]
            found = found[:1]  # those of several machines have no mean
        case Formula(value):
            return Summary(FORMULA, "", (value,), (), cell.metric.lower)
        case Combine():
            return _combine(cell, cell.how, budget, records)
        case _:
            return None
    values = tuple(value for value in map(cell.metric.read, found) if value is not None)
    name = COUNT if isinstance(cell.how, Count) else budget
    return Summary(name, width(cell, budget), values, tuple(found), cell.metric.lower) if found else None


def _combine(cell: Cell, how: Combine, budget: Budget, records: Sequence[Record]) -> Summary | None:
    """Return the runs of the part whose mean is best, or whose best run is where a best was published, or the mean of
    the parts by seed; None until all parts have runs.
    """
    parts = [summarise(find_cell(name), budget, records) for name in how.parts]
    known = [part for part in parts if part is not None and part.values]
    if len(known) < len(parts):
        return None
    if how.how == "best":
        best = any(each.kind == "best" for each in cell.published)
        return (min if cell.metric.lower else max)(known, key=lambda part: part.best() if best else part.mean)
    seeds = [_by_seed(part, cell) for part in known]
    common = sorted(set.intersection(*map(set, seeds)))
    values = tuple(mean(each[seed] for each in seeds) for seed in common)
    if not values:
        return None
    lines = tuple(record for part in known for record in part.records)
    return Summary(budget, known[0].width, values, lines, cell.metric.lower)


def _by_seed(part: Summary, cell: Cell) -> dict[int, float]:
    """Return the values of a part by the seeds of its runs; what has none counts as seed 0."""
    read = {record.get("seed", 0): cell.metric.read(record) for record in part.records}
    return {seed: value for seed, value in read.items() if value is not None} or {0: part.mean}


def reproduction(cell: Cell, records: Sequence[Record]) -> Summary | None:
    """Return the runs that may stand beside what was published: those of `full`, else `fast`, else `short`."""
    found = (summarise(cell, budget, records) for budget in REPRODUCTIONS)
    return next((each for each in found if each is not None), None)


def evidence(cell: Cell, records: Sequence[Record]) -> Summary | None:
    """Return the runs of the budget `cpu`; a count or a formula is no evidence but the thing itself."""
    found = summarise(cell, EVIDENCE, records)
    return found if found is not None and found.budget == EVIDENCE else None


def difference(published: Published, summary: Summary) -> float | None:
    """Return ours less theirs: mean or single value against our mean, a best against our best of as many runs.

    None where one of them is no number, where we have fewer runs than a best is of, and where nobody knows of how many
    it is.
    """
    number = published.number
    if number is None or not summary.values:
        return None
    if published.kind != "best":
        return summary.mean - number
    if published.runs is None or len(summary.values) < published.runs:
        return None
    return summary.best(published.runs) - number


def describe_gap(
    cell: Cell, records: Sequence[Record], machine: dict[str, Any] | None = None, root: Path | None = None
) -> str:
    """Return why there is no reproduction of `cell` among the lines.

    Args:
        cell: one of which `reproduction` finds none.
        records: all lines.
        machine: environment of this machine, by which hours are estimated from its smoke runs; None: they are not.
        root: folder of the data sets; None: the usual one.
    """
    match cell.how:
        case Quoted():
            return "quoted"
        case Impossible(reason):
            return f"cannot be reproduced: {reason}"
        case Combine(parts=parts):
            gaps = {describe_gap(find_cell(name), records, root=root) for name in parts}
            return gaps.pop() if len(gaps) == 1 else "not run"
    if isinstance(cell.how, Train) and (lacking := missing_data(cell.how.build(), root)):
        return f"data not at hand: {lacking}"
    hours = estimate_hours(cell, records, machine) if machine else None
    return "not run" if hours is None else f"not run (about {_round(hours)} h a run here)"


def estimate_hours(cell: Cell, records: Sequence[Record], machine: dict[str, Any]) -> float | None:
    """Return hours that one run of the budget `full` takes, by the steps that were measured on this machine beside
    smoke runs.

    Such a step is of the recipe's own batch; None without one.
    """
    if not isinstance(cell.how, Train):
        return None
    smoke = find_runs(records, apply_budget(cell.how.build(), SMOKE, cell), SMOKE)
    steps = [
        each["step_seconds"]
        for each in smoke
        if each.get("step_seconds")
        and all(each["environment"].get(name) == machine[name] for name in ("cpu", "cores", "gpu"))
    ]
    if not steps:
        return None
    ahead = count_ahead(apply_budget(cell.how.build(), FULL, cell))
    seconds = ahead._replace(step_seconds=min(steps)).seconds
    assert seconds is not None
    return seconds / 3600


def this_machine() -> dict[str, Any]:
    """Return what `estimate_hours` compares; imports torch."""
    from torchcaps.train.machine import describe_machine

    return describe_machine()


def _round(hours: float) -> str:
    return f"{hours:.0f}" if hours >= 10 else f"{hours:.1g}" if hours < 1 else f"{hours:.1f}"
