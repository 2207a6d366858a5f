"""The figures of the papers, drawn from the lines of results/runs.jsonl only; what was published is not drawn.

A line is solid where its runs are a reproduction, and dashed where they are evidence of the budget `cpu`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from torchcaps.inspect.drawings import Agreement, draw_agreement
from torchcaps.inspect.figures import save_svg, style
from torchcaps.tables.budget_names import COUNT, EVIDENCE, FULL
from torchcaps.tables.cells import Cell, Panel, Table
from torchcaps.tables.metrics import TRAIN_ACCURACY, TRAIN_LOSS, Metric, Record
from torchcaps.tables.summary import Summary, evidence, reproduction


class Line(NamedTuple):
    """What is drawn under one label: the mean, least and most of the runs at each epoch, or number of iterations."""

    label: str
    mark: str  # the budget and the width of the runs, empty of the budget `full`
    x: list[float]
    runs: list[list[float]]  # at each x the value of each run, in the unit of the metric
    end: tuple[float, float] | None = None  # epochs, and the mean that the selected weights reach on the test split
    split: str = ""  # that the curve is of: "train", "test" or "validation"; empty of what is no curve

    @property
    def of_training(self) -> bool:
        return self.label.endswith(", training")

    @property
    def name(self) -> str:
        """Return the label without what is said of all lines: that the faint one is of training."""
        return self.label.removesuffix(", training").removesuffix(", test")

    @property
    def subject(self) -> str:
        """Return what has one colour: the curves of the same runs."""
        return self.name + self.mark


def draw(table: Table, records: Sequence[Record]) -> Figure | None:
    """Return the figure that `table` stands for, with what the lines hold of it; None where that is nothing.

    Curves of test accuracies and errors are of the test split where all runs have these (`Config.test_curve`), else of
    the validation split, where one was held out; a dot at the end is the test result.
    """
    if table.layers:
        return draw_stages(table, records)
    found = [(panel, choose(panel, table)) for panel in table.panels]
    drawn = [(panel, cells, lines) for panel, cells in found if (lines := list(trace(panel, cells, records)))]
    if not drawn:
        return None
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    with style():
        figure = Figure(figsize=(4.6 * columns, 4.2 * rows), layout="constrained")
        for number, (panel, cells, lines) in enumerate(drawn, 1):
            axes = figure.add_subplot(rows, columns, number, title=panel.title)
            splits = {line.split for line in lines} & {"test", "validation"}
            quantities = dict.fromkeys(_quantity(cell.metric, splits) for cell in cells)
            axes.set_ylabel("\n".join(quantities), fontsize=8)
            marks = {line.mark for line in lines}
            common = marks.pop() if len(marks) == 1 else ""
            axes.set_xlabel(f"{panel.across}; all {common}" if common else panel.across, fontsize=8)
            _draw_lines(axes, lines, marked=not common, mixed=len(splits) > 1)
    return figure


def choose(panel: Panel, table: Table) -> list[Cell]:
    """Return the cells of a panel."""
    return [cell for cell in table.cells if any(fnmatchcase(cell.name, name) for name in panel.names)]


def trace(panel: Panel, cells: Sequence[Cell], records: Sequence[Record]) -> Iterator[Line]:
    """Yield the lines of `panel`: of each cell, or row of cells, what reproduces it, and the evidence.

    Where the narrowed networks of two cells are one, their runs are one, and are drawn for the first.
    """
    several = [len({getattr(cell, name) for cell in cells}) > 1 for name in ("row", "column")]
    heads = {cell.column.partition(", ")[0] for cell in cells}
    head = f"{heads.pop()}, " if len(heads) == 1 else ""
    for find in (reproduction, evidence):
        by_row: dict[tuple[str, str], dict[float, Summary]] = {}
        shown: set[tuple[str, tuple[int, ...]]] = set()
        for cell in cells:
            summary = find(cell, records)
            if summary is None or not summary.values:
                continue
            places = (cell.row.split(": ")[-1], cell.column.removeprefix(head))
            parts = [part for part, differs in zip(places, several, strict=True) if differs]
            if panel.across == "epoch":
                runs = _curve(cell.metric)[0][0], tuple(map(id, summary.records))
                if runs not in shown:
                    yield curve(", ".join(parts) or places[0], cell.metric, summary)
                shown.add(runs)
            else:
                by_row.setdefault((places[0], _mark(summary)), {})[_leading(cell.column)] = summary
        for (label, mark), row in by_row.items():
            yield Line(label, mark, sorted(row), [list(row[x].values) for x in sorted(row)])


def _mark(summary: Summary) -> str:
    return "" if summary.budget in (FULL, COUNT) else f"{summary.budget} {summary.width}".strip()


def curve(label: str, metric: Metric, summary: Summary) -> Line:
    """Return a metric over the epochs of the runs, on the first of its splits that all of them were measured on."""
    keys, read = _curve(metric)
    held = [record["curve"] for record in summary.records if "curve" in record]
    key = next((key for key in keys if held and all(_known(each.get(key)) for each in held)), keys[-1])
    curves = [each[key] for each in held]
    epochs = min(map(len, curves), default=0)
    known = [epoch for epoch in range(epochs) if all(values[epoch] is not None for values in curves)]
    values = [[read(values[epoch]) for values in curves] for epoch in known]
    split = key.partition("_")[0]
    end = (float(epochs), summary.mean) if split != "train" else None
    return Line(label, _mark(summary), [epoch + 1.0 for epoch in known], values, end, split)


def _known(values: Sequence[float | None] | None) -> bool:
    return values is not None and any(value is not None for value in values)


def _curve(metric: Metric) -> tuple[tuple[str, ...], Callable[[float], float]]:
    """Return the curves of a line that may show `metric`, the best first, and how their values become those of the
    metric.
    """
    if metric == TRAIN_LOSS:
        return ("train_loss",), lambda value: value
    if metric == TRAIN_ACCURACY:
        return ("train_accuracy",), lambda value: 100 * value
    return ("test_accuracy", "validation_accuracy"), lambda value: 100 * (1 - value if metric.lower else value)


def _quantity(metric: Metric, splits: set[str]) -> str:
    """Return what an axis shows; `splits` are those of its curves of test results."""
    name = metric.name.removesuffix(", last epoch") + (f" ({metric.unit})" if metric.unit else "")
    if metric == TRAIN_ACCURACY:
        return f"{name}, faint"
    tested = _curve(metric)[0][0] == "test_accuracy"
    return f"{name}; line: validation" if tested and splits == {"validation"} else name


def _leading(column: str) -> float:
    """Return the number that a column such as "3 iteration(s)" begins with."""
    return float(column.split()[0])


def _draw_lines(axes: Axes, lines: Sequence[Line], marked: bool, mixed: bool) -> None:
    """Draw lines, of which those of one subject have one colour, and training is the faint one.

    `marked` are budgets and widths, and where splits are `mixed` the curves that are of the validation split.
    """
    subjects = list(dict.fromkeys(line.subject for line in lines))
    tested = {line.subject for line in lines if not line.of_training}
    for line in lines:
        colour, dashes = f"C{subjects.index(line.subject) % 10}", "--" if line.mark.startswith(EVIDENCE) else "-"
        marker, faint = "." if len(line.x) < 10 else "", 0.45 if line.of_training else 1.0
        marks = [line.mark * marked, line.split * (mixed and line.split == "validation")]
        label = f"{line.name} ({', '.join(filter(None, marks))})" if any(marks) else line.name
        if line.of_training and line.subject in tested:
            label = f"_{line.label}"
        means = [mean(each) for each in line.runs]
        least, most = [min(each) for each in line.runs], [max(each) for each in line.runs]
        axes.plot(line.x, means, dashes, color=colour, alpha=faint, lw=1.3, marker=marker, label=label)
        axes.fill_between(line.x, least, most, color=colour, alpha=0.15 * faint, lw=0)
        if line.end is not None:
            axes.plot(*([value] for value in line.end), "o", color=colour, ms=4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    longest = max(len(line.name) for line in lines)
    axes.legend(
        fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2 if longest < 32 and not marked else 1
    )


def draw_stages(table: Table, records: Sequence[Record]) -> Figure | None:
    """Return a row for each layer of each of the table's networks, a panel for each stage, of the first seed's run.

    None where there is no run.
    """
    rows: dict[str, dict[int, Agreement]] = {}
    sources = []
    for name, cell in {cell.row: cell for cell in table.cells}.items():
        found = reproduction(cell, records) or evidence(cell, records)
        if found is None or not (stages := found.records[0].get("agreement")):
            continue
        sources.append(f"{name}: {found.budget} {found.width}".strip())
        for layer, place in zip(stages[0]["layers"], table.layers, strict=True):
            agreements = {stage["epoch"]: Agreement(**stage["layers"][layer]) for stage in stages}
            rows[f"{agreements[stages[0]['epoch']].routing}, {place}"] = agreements
    if not rows:
        return None
    figure = draw_agreement(rows)
    figure.suptitle("; ".join(sources), fontsize=8)
    return figure


def write_figure(table: Table, records: Sequence[Record], path: Path) -> bool:
    """Write the figure of `draw` as SVG to `path`, the same bytes for the same lines; returns whether there is one."""
    figure = draw(table, records)
    if figure is None:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    save_svg(figure, path)
    return True
