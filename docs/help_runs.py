"""What runs of `torchcaps compare` on shares of the images say of each head; `torchcaps.compare.rows` has the rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from statistics import mean

from torchcaps.compare.comparison import Comparison
from torchcaps.compare.heads import all_heads, choose_heads
from torchcaps.compare.page import read_row
from torchcaps.compare.rows import FEWEST, Gap, Row, values, was_run
from torchcaps.names import OF_TWIN, TWIN
from torchcaps.tables.budget_names import EVIDENCE
from torchcaps.tables.metrics import Record

DATA = "cifar10"
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
Rows = Mapping[str, Row]


def heads() -> list[str]:
    """The controls, the routings that were run on shares of the images, and the twins of those of other sizes."""
    return choose_heads(ROUTINGS)


def collect(records: Sequence[Record], share: float, data: str, names: Sequence[str]) -> Rows:
    """What the lines hold of the heads `names`, trained on a share of `data` with the budget `cpu`."""
    comparison, found = Comparison(data=data, fractions=(share,)), {}
    for cell in comparison.cells(names):
        head = cell.name.partition("@")[0]
        found[head] = read_row(cell, EVIDENCE, records)._replace(head=head)
    return found


def twin_of(head: str, rows: Rows) -> Row:
    """The convolutional network of a head's size."""
    return rows.get(f"{head}{OF_TWIN}", rows[TWIN])


def capsules(rows: Rows) -> list[Row]:
    """Of heads with capsules, those that were run: without routing first."""
    return [rows[head] for head in (UNIFORM, *ROUTINGS) if was_run(rows[head])]


def chosen(candidates: Sequence[Row]) -> Row | None:
    """The one that is best on validation, so that the test split, which it is judged by, had no say; of those with
    seeds enough to be judged, where there are such.
    """
    able = [row for row in candidates if len(values(row)) >= FEWEST]
    return max(able or candidates, key=lambda row: mean(values(row, "validation_accuracy").values()), default=None)


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
