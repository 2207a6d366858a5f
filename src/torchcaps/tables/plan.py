"""What is to be run to fill cells: one job for each run or count, what several cells share once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from torchcaps.config import Config
from torchcaps.names import unknown
from torchcaps.tables.budget_names import COUNT, Budget
from torchcaps.tables.budgets import apply_budget
from torchcaps.tables.cells import Cell, Combine, Count, Table, Train, find_cell
from torchcaps.tables.records import config_hash, count_hash


class Job(NamedTuple):
    """One run, or one count, of a cell."""

    cell: Cell
    budget: Budget | Literal["count"]
    config: Config

    @property
    def label(self) -> str:
        return self.cell.id if self.budget == COUNT else f"{self.cell.id} seed {self.config.seed}"


def choose_cells(tables: Iterable[Table], pattern: str) -> list[Cell]:
    """Return the cells whose names match a shell pattern.

    Raises:
        ValueError: when there is none; the nearest one is named.
    """
    every = [cell for table in tables for cell in table.cells]
    chosen = [cell for cell in every if fnmatchcase(cell.name, pattern)]
    if not chosen:
        raise unknown("cell", pattern, [cell.name for cell in every])
    return chosen


def plan(cells: Iterable[Cell], budget: Budget, seeds: int | None = None) -> list[Job]:
    """Return what fills `cells`: the first seed of each before the second of any; what several share stands once.

    Args:
        seeds: runs of each cell; None: as many as its recipe says.

    Raises:
        ValueError: when `seeds` is below 1.
    """
    if seeds is not None and seeds < 1:
        raise ValueError(f"seeds is {seeds}; it must be at least 1")
    jobs: dict[tuple[str, ...], list[Job]] = {}
    for cell in _unfold(cells):
        if isinstance(cell.how, Count):
            config = cell.how.build()
            jobs[cell.id, count_hash(config)] = [Job(cell, COUNT, config)]
        elif isinstance(cell.how, Train):
            config = apply_budget(cell.how.build(), budget, cell)
            count = seeds or cell.how.seeds
            planned = [Job(cell, budget, replace(config, seed=seed)) for seed in range(count)]
            key = (config_hash(config),)
            jobs[key] = max(jobs.get(key, []), planned, key=len)
    rounds = max(map(len, jobs.values()), default=0)
    return [planned[number] for number in range(rounds) for planned in jobs.values() if number < len(planned)]


def _unfold(cells: Iterable[Cell]) -> Iterator[Cell]:
    """Yield `cells`, those that combine others replaced by these."""
    for cell in cells:
        if isinstance(cell.how, Combine):
            yield from _unfold(map(find_cell, cell.how.parts))
        else:
            yield cell
