"""Papers, their tables, and the cells of these: what was published, where, and how it is measured anew.

A paper's file registers its tables; a table is a function that yields its cells, called when it is first asked for.
Nothing here imports torch, so that listings answer at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias

from torchcaps.config import Config, Option
from torchcaps.names import unknown
from torchcaps.plugins import load_plugins
from torchcaps.tables.metrics import ERROR, Metric

Kind = Literal["mean", "best", "single"]
Drawn = Literal["reconstructions", "segmentations"]
Change = Callable[[Config], Config]


@dataclass(frozen=True)
class Published:
    """What stands in print.

    A mean, and a single value of which the paper does not say what it is, face our mean; a best faces our best of as
    many runs.
    """

    text: str  #: a number as it is printed, or a word such as "fail"
    kind: Kind = "single"
    std: str = ""  #: printed behind a mean
    runs: int | None = None  #: that a mean or best is of, where the paper says

    @property
    def number(self) -> float | None:
        """Return the value as a number; None for a word."""
        try:
            return float(self.text)
        except ValueError:
            return None

    def __str__(self) -> str:
        std = f" ± {self.std}" if self.std else ""
        return f"{self.text}{std}" + (" (best)" if self.kind == "best" else "")


@dataclass(frozen=True)
class Narrow:
    """How the budget `cpu` shrinks the network of a recipe, never its layers."""

    name: str  #: of the widths, part of the result's name, e.g. "64-filters-8-types"
    options: Mapping[str, Option] = field(default_factory=dict)  #: of the model, in place of the recipe's
    change: Change | None = None  #: what else differs, after all other changes of the budget


@dataclass(frozen=True)
class Train:
    """Filled by training."""

    build: Callable[[], Config]  #: the complete config, as the paper trains
    cpu: Narrow | None = None  #: None: the budget `cpu` trains the network as it is
    fast: Change | None = None  #: what differs in the budget `fast`, after all its other changes
    seeds: int = 3  #: runs, where no other number is asked for
    selected: bool = False  #: whether `full`, `fast` and `short` choose the epoch, on the recipe's validation split
    plotted: bool = False  #: whether the paper plots its test error over the epochs: then those three record it


@dataclass(frozen=True)
class Count:
    """Filled by a number of the recipe's network that needs no training."""

    build: Callable[[], Config]
    measure: Callable[[Config], float]  #: in the unit of the metric; imports torch when it is called
    device: str = "auto"  #: that it measures on


@dataclass(frozen=True)
class Formula:
    """Filled by arithmetic alone, such as a paper's own way of counting operations."""

    value: float  #: in the unit of the metric


@dataclass(frozen=True)
class Combine:
    """The best, or the mean, of what other cells measure."""

    how: Literal["best", "mean"]
    parts: tuple[str, ...]  #: PAPER/TABLE/CELL


@dataclass(frozen=True)
class Quoted:
    """Other people's system: cited, never run."""


@dataclass(frozen=True)
class Impossible:
    """Cannot be reproduced, and why."""

    reason: str


How: TypeAlias = Train | Count | Formula | Combine | Quoted | Impossible


@dataclass(frozen=True)
class Cell:
    name: str  #: within its table, in lower case, words joined by "-"
    row: str  #: as printed
    column: str  #: as printed
    how: How
    published: tuple[Published, ...] = ()  #: empty where the paper prints no value, as in most figures
    metric: Metric = ERROR
    note: str = ""  #: e.g. where the paper and its released code differ, and which one this is
    home: str = ""  #: PAPER/TABLE, filled in by the table
    picture: Drawn | None = None  #: what is drawn of the run, where print has a picture; see `tables.pictures`

    @property
    def id(self) -> str:
        """Return PAPER/TABLE/CELL; of a cell of no table its name."""
        return f"{self.home}/{self.name}" if self.home else self.name

    @property
    def build(self) -> Callable[[], Config] | None:
        """Return the function that returns the recipe, where there is one."""
        return self.how.build if isinstance(self.how, Train | Count) else None


class Panel(NamedTuple):
    """One part of a figure, and the cells that are drawn in it."""

    title: str
    across: Literal["epoch", "iterations"]  # an epoch's curve of each cell; or the values of a row's cells
    names: tuple[str, ...] = ("*",)  # of cells, shell patterns


@dataclass(frozen=True)
class Paper:
    name: str
    citation: str


@dataclass(frozen=True)
class Table:
    paper: Paper
    name: str  #: e.g. "table2" for Table II
    printed: str  #: what the paper calls it, e.g. "Table II"
    title: str
    yield_cells: Callable[[], Iterable[Cell]]
    panels: tuple[Panel, ...] = ()  #: of the figure that is drawn of its runs; see `tables.figures`
    layers: tuple[str, ...] = ()  #: names of those whose votes are drawn beside their parents, stage by stage

    @property
    def id(self) -> str:
        """Return PAPER/TABLE."""
        return f"{self.paper.name}/{self.name}"

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Return the cells in the order of the rows, and in each of the columns."""
        return tuple(dataclasses.replace(cell, home=self.id) for cell in self.yield_cells())


_TABLES: dict[str, Table] = {}
_KINDS = ("table", "figure", "text")


def table(
    paper: Paper, name: str, printed: str, title: str, panels: tuple[Panel, ...] = (), layers: tuple[str, ...] = ()
) -> Callable[[Callable[[], Iterable[Cell]]], Table]:
    """Register a function that yields the cells of a table; listings, commands and tests find it then. Of one that is
    drawn, as a figure is, `panels` or `layers` say what is seen of its runs.

    Raises:
        ValueError: for a name that does not begin with table, figure or text, and for one that the paper has already.
    """
    if not name.startswith(_KINDS):
        raise ValueError(f"a table is named {name!r}; it must begin with table, figure or text, as in text-crops")

    def register(function: Callable[[], Iterable[Cell]]) -> Table:
        made = Table(paper, name, printed, title, function, panels, layers)
        if made.id in _TABLES:
            raise ValueError(f"table {made.id!r} is registered twice")
        _TABLES[made.id] = made
        return made

    return register


def list_tables(pattern: str = "*") -> list[Table]:
    """Return the tables whose PAPER/TABLE matches a shell pattern: paper by paper its tables, figures, and numbers in
    the text.
    """
    load_plugins()
    return sorted((each for name, each in _TABLES.items() if fnmatchcase(name, pattern)), key=_order)


def _order(table: Table) -> tuple[str, int, str]:
    return table.paper.name, next(n for n, kind in enumerate(_KINDS) if table.name.startswith(kind)), table.name


def find_tables(pattern: str) -> list[Table]:
    """Return the table PAPER/TABLE, or those that a shell pattern matches.

    Raises:
        ValueError: when there is none; the nearest one is named.
    """
    if found := list_tables(pattern):
        return found
    home, _, cell = pattern.rpartition("/")
    if home in _TABLES and any(each.name == cell for each in _TABLES[home].cells):
        raise ValueError(f"{pattern!r} is a cell of the table {home}: `torchcaps reproduce {home} --cells {cell}`")
    raise unknown("table", pattern, _TABLES, "`torchcaps list tables` shows all")


def find_cell(name: str) -> Cell:
    """Return the cell PAPER/TABLE/CELL.

    Raises:
        ValueError: when there is none; the nearest one is named.
    """
    home, _, short = name.rpartition("/")
    cells = {cell.name: cell for each in find_tables(home) for cell in each.cells}
    if short not in cells:
        raise unknown(f"cell of {home}", short, cells)
    return cells[short]
