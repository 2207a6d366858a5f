"""Every cost that a paper prints, beside what its convention gives and what we count: nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any, Literal, NamedTuple

from torchcaps.config import Option
from torchcaps.markdown import markdown_table
from torchcaps.names import unknown

UNITS = {"B": 1e9, "M": 1e6, "K": 1e3}
PAPERS = {"xnodr": "xnodr_tables", "encapnet": "encapnet"}  #: the module beside this one that holds its `cells()`
Quantity = Literal["parameters", "flops", "bops", "ratio"]


class Network(NamedTuple):
    """What `create_model` is asked for where we count the same network; 10 classes, three channels."""

    name: str
    pixels: int
    options: tuple[tuple[str, Option], ...] = ()


@dataclass(frozen=True)
class PublishedCost:
    """A cell of a table, or a number in the text."""

    paper: str  #: as in the names of recipes
    table: str  #: "table4", "text"
    row: str  #: as printed
    column: str  #: as printed
    quantity: Quantity
    printed: str  #: "3.863B", "63.99", "5.22%"
    computed: float | None  #: by the paper's own convention; None where no formula of it is known
    reason: str = ""  #: why it cannot be reproduced; empty exactly where it can
    quoted: bool = False  #: of other people's system, which the paper cites
    network: Network | None = field(default=None, repr=False)  #: None where we have no such network to count
    part: Literal["network", "head"] = "network"  #: what of it the cell counts

    @property
    def value(self) -> float:
        """Return what is printed, as a number; a percentage as it stands."""
        return float(self._digits) * self._unit

    @property
    def reproduced(self) -> bool:
        """Return whether `computed` rounds to what is printed."""
        if self.computed is None:
            return False
        decimals = len(self._digits.partition(".")[2])
        return f"{self.computed / self._unit:.{decimals}f}" == self._digits

    @property
    def ours(self) -> int | None:
        """Return trainable parameters, or operations by our convention, of our network; None where there is none."""
        if self.network is None:
            return None
        return _count(self.network, self.part)[self.quantity]

    @property
    def _digits(self) -> str:
        return self.printed.rstrip("%BMKx").replace(",", "")

    @property
    def _unit(self) -> float:
        return UNITS.get(self.printed[-1], 1.0)


def published_costs(paper: str | None = None, table: str | None = None) -> tuple[PublishedCost, ...]:
    """Return the cells of all papers, of one, or of one of its tables, in the order in which they are printed.

    Raises:
        ValueError: for a paper or a table without costs; the nearest is named.
    """
    if paper is not None and paper not in PAPERS:
        raise unknown("paper with costs", paper, PAPERS)
    cells = [each for name in ([paper] if paper else PAPERS) for each in _cells(name)]
    if table is not None and table not in (tables := {each.table for each in cells}):
        raise unknown("table with costs", table, tables)
    return tuple(each for each in cells if table in (None, each.table))


def cost_table(cells: Iterable[PublishedCost], ours: bool = True) -> str:
    """Return Markdown: what is printed, by the paper's convention, reproduced or why not, and `ours`, which builds
    models.
    """
    head = ["where", "row", "column", "printed", "their convention", *(["ours"] if ours else []), "reproduced"]
    rows = []
    for cell in cells:
        computed = (
            "" if cell.computed is None else f"{cell.computed:,.6g}" if cell.computed < 1e3 else f"{cell.computed:,.0f}"
        )
        mine = [] if not ours else ["" if cell.ours is None else f"{cell.ours:,}"]
        verdict = "quoted" if cell.quoted and not cell.reproduced else "yes" if cell.reproduced else cell.reason
        rows.append([cell.table, cell.row, cell.column, cell.printed, computed, *mine, verdict])
    return markdown_table(head, rows)


@cache
def _cells(paper: str) -> tuple[PublishedCost, ...]:
    cells: Callable[[], Iterable[PublishedCost]] = import_module(f"torchcaps.cost.{PAPERS[paper]}").cells
    return tuple(cells())


@cache
def _count(network: Network, part: str) -> dict[str, int]:
    """Count on the meta device, where nothing is computed."""
    import torch

    from torchcaps.cost.operations import count_operations
    from torchcaps.models import create_model
    from torchcaps.models.heads import HeadedModel

    options: dict[str, Any] = dict(network.options)
    with torch.device("meta"):
        model = create_model(network.name, image_size=network.pixels, in_channels=3, **options)
        assert isinstance(model, HeadedModel)
        counted, inputs = model, torch.rand(1, 3, network.pixels, network.pixels)
        if part == "head":
            counted, inputs = model.head, model.backbone(inputs).detach()
        return {
            "parameters": sum(weight.numel() for weight in counted.parameters() if weight.requires_grad),
            "flops": count_operations(counted, inputs),
        }
