"""A comparison as a table, from the lines of results/runs.jsonl only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean

from torchcaps.compare.comparison import Comparison
from torchcaps.compare.costs import counts_are_current, find_costs
from torchcaps.compare.examined import describe_depth, describe_examinations, find_examinations
from torchcaps.compare.heads import CONTROLS, is_control
from torchcaps.compare.rows import FEWEST, Row, by_side, describe_sides
from torchcaps.markdown import markdown_table
from torchcaps.tables.budget_names import REPRODUCTIONS, Budget
from torchcaps.tables.budgets import apply_budget
from torchcaps.tables.cells import Cell
from torchcaps.tables.measure import count_parameters
from torchcaps.tables.metrics import Record
from torchcaps.tables.records import find_all_runs, name_machine
from torchcaps.tables.summary import summarise

OLDER = r"\*"  # behind numbers that were counted otherwise
Show = Callable[[Record], str]
COSTS: dict[str, Show] = {
    "parameters": lambda cost: f"{cost['parameters']:,}",
    "multiply-adds (M)": lambda cost: f"{cost['multiply_adds'] / 1e6:.2f}{'' if counts_are_current(cost) else OLDER}",
    "training step (ms)": lambda cost: f"{cost['step_ms']:.1f}",
    "its memory (MB)": lambda cost: f"{cost['step_memory_mb']:.0f}",
    "latency at 1 (ms)": lambda cost: f"{cost['latency_1_ms']:.2f}",
    "at 128 (ms)": lambda cost: f"{cost['latency_128_ms']:.1f}",
}
LEGEND = (
    "mean ± standard deviation (runs), in percent. Multiply-adds are of one image. A training step is of 128 images, "
    "in bf16 where the machine multiplies in it natively; its memory is what it takes beyond the resting process. "
    "Latency is of inference in float32, for a batch of 1 and of 128."
)
RULE = (
    f"Heads are compared by the differences of runs with the same seed, and of one precision where there are such: "
    f"decided is what the interval of 95 % (Student's t, at least {FEWEST} seeds) leaves zero out of."
)


def collect(comparison: Comparison, heads: Sequence[str], budget: Budget, records: Sequence[Record]) -> list[Row]:
    """Return what the lines hold of each head."""
    rows = []
    for cell in comparison.cells(heads):
        assert cell.build is not None
        cost = find_costs(records, cell)
        counted = None if cost is not None else round(1e6 * count_parameters(cell.build()))
        rows.append(read_row(cell, budget, records)._replace(cost=cost, parameters=counted))
    return rows


def read_row(cell: Cell, budget: Budget, records: Sequence[Record]) -> Row:
    """Return what the lines hold of the runs of one head, without what it costs."""
    assert cell.build is not None
    config = apply_budget(cell.build(), budget, cell)
    examined, again = find_examinations(records, config), find_all_runs(records, config, budget)
    return Row(cell.name, summarise(cell, budget, records), None, examined=tuple(examined), again=tuple(again))


def markdown(comparison: Comparison, rows: Sequence[Row], budget: Budget, changes: Sequence[str] = ()) -> str:
    """Return the table, the controls in front and the others by accuracy, with where the numbers come from.

    `changes` are of the data, NAME=VALUE, and stand in its title.
    """
    epoch = (
        "of the last epoch, trained on the whole split"
        if budget in REPRODUCTIONS
        else ("of the epoch that is best on validation")
    )
    data = ", ".join([comparison.data, *changes])
    lines = [f"# Routings on {comparison.backbone}, {data}", "", f"Budget: {budget}. Accuracy: test, {epoch}; {LEGEND}"]
    lines.append("")
    lines.append(markdown_table(["head", "accuracy (%)", "best", *COSTS], map(_cells, ranked(rows))))
    examined = describe_examinations({row.head: row.examined for row in ranked(rows)})
    if comparison.depths:
        layers = describe_depth({row.head: row.examined for row in rows})
        examined += ["", *layers] if layers else []
    lines += ["", *_verdict(rows), "", *_sources(rows), *([""] if examined else []), *examined]
    return "\n".join(lines) + "\n"


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Return the controls in front, then the others from the most accurate down; what has no run comes last."""
    return sorted(rows, key=lambda row: (not is_control(row.head), -accuracy_of(row)))


def accuracy_of(row: Row) -> float:
    """Return the mean test accuracy of a row in percent; 0 where nothing was run."""
    return row.accuracy.mean if row.accuracy is not None and row.accuracy.values else 0.0


def show_accuracy(row: Row) -> str:
    """Return the mean ± standard deviation and (runs), as text."""
    if row.accuracy is None or not row.accuracy.values:
        return "not run"
    deviation = "" if row.accuracy.std is None else f" ± {row.accuracy.std:.2f}"
    return f"{row.accuracy.mean:.2f}{deviation} ({len(row.accuracy.values)})"


def _cells(row: Row) -> list[str]:
    accuracy, best = show_accuracy(row), ""
    if row.accuracy is not None and row.accuracy.values:
        best = f"{row.accuracy.best():.2f}"
    if row.accuracy is not None and row.accuracy.failures:
        accuracy += f"; {len(row.accuracy.failures)} failed: {row.accuracy.failures[0]}"
    return [row.head, accuracy, best, *_costs(row)]


def _costs(row: Row) -> list[str]:
    if row.cost is None:
        return [f"{row.parameters:,}" if row.parameters else "", *[""] * (len(COSTS) - 1)]
    return [show(row.cost) for show in COSTS.values()]


def _verdict(rows: Sequence[Row]) -> list[str]:
    """Return which heads lie above each control and which below, and of which it is not decided; of `twin` the one of
    its own stands in its place for a head that has one.

    In a sweep a head is judged by the control of the same value, or by the one that there is of a control that has not
    what is swept.
    """
    by_head = {row.head: row for row in rows}
    heads = [row for row in ranked(rows) if not is_control(row.head)]
    said = []
    for control in CONTROLS:
        own = {row.head: _of_value(by_head, row.head, f"{row.head.partition('@')[0]}-{control}") for row in heads}
        judges = {head: found or _of_value(by_head, head, control) for head, found in own.items()}
        judged = {head: judge for head, judge in judges.items() if judge is not None}
        found = by_side((row for row in heads if row.head in judged), lambda row, judged=judged: judged[row.head])
        if found[1] or found[-1] or found[0]:
            which = f"`{control}`, or NAME`-{control}` where there is one" if any(own.values()) else f"`{control}`"
            which += ", of the same value" if any("@" in judge.head for judge in judged.values()) else ""
            said.append(f"Against {which}: {describe_sides(found)}.")
    return [RULE, *said] if said else []


def _of_value(by_head: Mapping[str, Row], head: str, control: str) -> Row | None:
    """Return the row of `control` that has the value of `head`, NAME or NAME@FIELD=VALUE; else the one without any."""
    _, at, value = head.partition("@")
    return by_head.get(f"{control}{at}{value}", by_head.get(control))


def deviation_of(row: Row) -> float | None:
    """Return the deviation; None for less than two runs, of which nothing can be said."""
    return None if row.accuracy is None else row.accuracy.std


def _sources(rows: Sequence[Row]) -> list[str]:
    """Return where accuracies and costs were measured."""
    lines = []
    runs = [record for row in rows if row.accuracy is not None for record in row.accuracy.records]
    for what, found in (("Runs", runs), ("Costs", [row.cost for row in rows if row.cost is not None])):
        places = dict.fromkeys(_place(record) for record in found)
        seconds = [record["seconds"] for record in found if "seconds" in record]
        time = f", {mean(seconds) / 60:.1f} min a run beside other work" if seconds else ""
        if found:
            lines.append(f"{what}: {len(found)}{time}; {'; '.join(places)}.")
    return [*lines, *older_counts(rows)]


def older_counts(rows: Sequence[Row]) -> list[str]:
    """Return what is said below a table whose numbers are not all counted as they are now."""
    if all(row.cost is None or counts_are_current(row.cost) for row in rows):
        return []
    return [f"{OLDER} an older count, which leaves out what kernels compute: a newer one may be higher."]


def _place(record: Record) -> str:
    where = record.get("environment", {})
    commit = (where.get("commit") or {}).get("hash", "unknown")[:10]
    precision = [where["precision"]] if "precision" in where else []  # of a run
    return ", ".join([name_machine(where), *precision, f"torch {where.get('torch')}", f"commit {commit}"])
