"""How votes agree with their parents as a network learns, EncapNet's figure 2, read from the lines of the runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torchcaps.tables.cells import Table
from torchcaps.tables.metrics import Metric, Record
from torchcaps.tables.summary import evidence, reproduction

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def opposed(stage: int) -> Metric:
    """Return the share, of the votes for the true class, of those of the lowest step of the cosine, from -1 to -0.9."""
    return Metric("votes that oppose their parent", "%", lambda record: _top(record, stage, "share", 0), lower=True)


def length_alike(stage: int) -> Metric:
    """Return mean length of the votes for the true class in the highest step of the cosine, from 0.9 to 1."""
    return Metric("length of votes like their parent", "", lambda record: _top(record, stage, "length", -1), digits=4)


def _top(record: Record, stage: int, name: str, step: int) -> float | None:
    """Return the agreement of the class capsules."""
    stages = record.get("agreement")
    return list(stages[stage]["layers"].values())[-1][name][step] if stages else None


def draw_stages(table: Table, records: Sequence[Record]) -> Figure | None:
    """Return a row for each layer of each of the table's networks, a panel for each stage, of the first seed's run.

    None where there is no run.
    """
    from torchcaps.inspect.agreement import Agreement, draw_agreement

    rows: dict[str, dict[int, Agreement]] = {}
    sources = []
    for name, cell in {cell.row: cell for cell in table.cells}.items():
        found = reproduction(cell, records) or evidence(cell, records)
        if found is None or not (stages := found.records[0].get("agreement")):
            continue
        sources.append(f"{name}: {found.budget} {found.width}".strip())
        for layer, place in zip(stages[0]["layers"], ("fifth layer", "class capsules"), strict=True):
            agreements = {stage["epoch"]: Agreement(**stage["layers"][layer]) for stage in stages}
            rows[f"{agreements[stages[0]['epoch']].routing}, {place}"] = agreements
    if not rows:
        return None
    figure = draw_agreement(rows)
    figure.suptitle("; ".join(sources), fontsize=8)
    return figure
