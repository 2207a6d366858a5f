"""Print the README's table of all routings on one backbone, from the lines of results/runs.jsonl.

python docs/draw_compared.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchcaps.compare.comparison import Comparison
from torchcaps.compare.costs import BATCH
from torchcaps.compare.heads import all_heads
from torchcaps.compare.page import COSTS, collect, older_counts, ranked, show_accuracy
from torchcaps.compare.rows import Row
from torchcaps.markdown import markdown_table
from torchcaps.tables.metrics import Record
from torchcaps.tables.records import read_records

RUNS = Path(__file__).parent.parent / "results" / "runs.jsonl"
DATA = {"fashion-mnist": "Fashion-MNIST (%)", "cifar10": "CIFAR-10 (%)"}
SHOWN = ("parameters", "multiply-adds (M)", "training step (ms)")
HEADER = ("head", *DATA.values(), *SHOWN, "latency at 1 / 128 (ms)")


def table(records: Sequence[Record]) -> str:
    """Markdown, by accuracy on the last data set, whose images the costs are of; the controls in front."""
    found = {data: collect(Comparison(data=data), all_heads(), "cpu", records) for data in DATA}
    *others, last = found.values()
    lines = []
    for row in ranked(last):
        beside = [next(other for other in rows if other.head == row.head) for rows in others]
        lines.append((f"`{row.head}`", *map(show_accuracy, beside), show_accuracy(row), *_costs(row)))
    notes = (*_machines(last), *older_counts(last))
    return "\n".join([markdown_table(HEADER, lines), *("\n" + note for note in notes)])


def _machines(rows: Sequence[Row]) -> list[str]:
    """What costs are of; empty where none was measured."""
    found = [row.cost["environment"] for row in rows if row.cost is not None]
    where = dict.fromkeys(f"{each['cpu']}, {each['threads']} threads" for each in found)
    name = list(DATA.values())[-1].removesuffix(" (%)")
    return [f"Costs: images of {name}'s size, a training step of {BATCH} of them; {'; '.join(where)}."] if found else []


def _costs(row: Row) -> tuple[str, ...]:
    if row.cost is None:
        return ("",) * (len(SHOWN) + 1)
    latency = f"{row.cost['latency_1_ms']:.1f} / {row.cost['latency_128_ms']:.1f}"
    return *(COSTS[name](row.cost) for name in SHOWN), latency


if __name__ == "__main__":
    print(table(read_records(RUNS)))
