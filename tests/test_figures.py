"""The figures of the papers: what the lines hold, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from torchcaps.cli import main
from torchcaps.papers import find_cell, find_tables, list_tables
from torchcaps.tables.budget_names import Budget
from torchcaps.tables.budgets import apply_budget, width
from torchcaps.tables.cells import Cell, Count, Train
from torchcaps.tables.figures import choose, draw
from torchcaps.tables.metrics import TRAIN_ACCURACY, TRAIN_LOSS, Record
from torchcaps.tables.records import config_hash

CURVE = {"train_loss": [0.9, 0.5, 0.4], "train_accuracy": [0.5, 0.7, 0.8], "validation_accuracy": [0.4, 0.6, 0.7]}


def run(name: str, budget: Budget = "fast", seed: int = 0, accuracy: float = 0.75, **curve: list) -> Record:
    """A made-up line of a cell."""
    cell = find_cell(name)
    assert isinstance(cell.how, Train)
    key = config_hash(apply_budget(cell.how.build(), budget, cell))
    known = {"cell": name, "budget": budget, "width": width(cell, budget), "seed": seed, "config_hash": key}
    return known | {"test_accuracy": accuracy, "curve": CURVE | curve, "environment": {}}


def count(name: str, value: float) -> Record:
    cell = find_cell(name)
    assert isinstance(cell.how, Count)
    return {"cell": name, "budget": "count", "seed": 0, "config_hash": config_hash(cell.how.build()), "value": value}


def drawn(table: str, records: list[Record]) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """By panel and label the points of each line."""
    figure = draw(find_tables(table)[0], records)
    assert figure is not None
    return {
        axes.get_title(): {
            str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata()))  # pyright: ignore[reportArgumentType]
            for line in axes.get_lines()
        }
        for axes in figure.axes
    }


def test_every_panel_has_cells() -> None:
    for table in list_tables():
        for panel in table.panels:
            assert len(choose(panel, table)) > 1, (table.id, panel.title)


def test_nothing_is_drawn_where_there_are_no_runs() -> None:
    for table in list_tables():
        assert draw(table, []) is None
    assert draw(find_tables("discriminative/table2")[0], [run("discriminative/table2/mnist-dr")]) is None
    other = run("discriminative/figure3/cifar10-dr", "smoke")
    assert draw(find_tables("discriminative/figure3")[0], [other]) is None


def test_errors_over_epochs_with_the_test_result_as_a_dot() -> None:
    records = [
        run("discriminative/figure3/mnist-dr"),
        run("discriminative/figure3/mnist-dr", seed=1, accuracy=0.85, validation_accuracy=[0.6, 0.8, 0.9]),
        run("discriminative/figure3/cifar10-l2-fc", "cpu"),
    ]
    panels = drawn("discriminative/figure3", records)
    assert list(panels) == ["MNIST", "CIFAR-10"]
    (label, (epochs, errors)), (_, (last, test)) = panels["MNIST"].items()
    assert (label, epochs, last) == ("DR", [1, 2, 3], [3])
    assert errors == pytest.approx([50, 30, 20]) and test == pytest.approx([20])
    assert "L2/FC" in panels["CIFAR-10"]


def test_cells_of_a_plotted_recipe_all_record_its_test_curve() -> None:
    """Whichever of them is run first: cells that share a recipe share its runs."""
    drawn = [
        cell
        for table in list_tables()
        for panel in table.panels
        for cell in choose(panel, table)
        if panel.across == "epoch"
    ]
    tested = {name_of(cell) for cell in drawn if cell.metric not in (TRAIN_ACCURACY, TRAIN_LOSS)}
    for table in list_tables():
        for cell in table.cells:
            if isinstance(cell.how, Train):
                assert cell.how.plotted == (name_of(cell) in tested), cell.id
    homes = {cell.home for cell in drawn if name_of(cell) in tested}
    assert homes == {
        "discriminative/figure3",
        "fm/figure4",
        "fm/figure5",
        "inverted-attention/figure4",
        "inverted-attention/figure5",
        "inverted-attention/text-pose",
        "inverted-attention/text-start",
        *(f"xnodr/figure{number}" for number in range(4, 10)),
    }


def name_of(cell: Cell) -> str:
    assert isinstance(cell.how, Train)
    return config_hash(cell.how.build())


def test_a_recorded_test_curve_is_what_is_drawn() -> None:
    name = "discriminative/figure3/mnist-dr"
    tested = {"validation_accuracy": [None] * 3, "test_accuracy": [0.5, 0.8, 0.9]}
    (panel,) = drawn("discriminative/figure3", [run(name, "full", accuracy=0.9, **tested)]).values()
    assert panel["DR"][1] == pytest.approx([50, 20, 10])
    assert [points[1] for points in panel.values()][1] == pytest.approx([10])  # the dot
    half = {**tested, "test_accuracy": [None, 0.8, 0.9]}  # of a run that was begun without
    (panel,) = drawn("discriminative/figure3", [run(name, "full", **half)]).values()
    assert panel["DR"] == ([2, 3], pytest.approx([20, 10]))
    both = [run(name, "full", **tested), run(name, "cpu")]
    figure = draw(find_tables("discriminative/figure3")[0], both)
    assert figure is not None and figure.axes[0].get_ylabel() == "test error (%)"
    assert set(drawn("discriminative/figure3", both)["MNIST"]) > {"DR", "DR (cpu 16-filters-8-types, validation)"}
    older = [run(name, "full", **tested), run(name, "full", seed=1)]  # of one there is no test curve, so of none
    figure = draw(find_tables("discriminative/figure3")[0], older)
    assert figure is not None and figure.axes[0].get_ylabel() == "test error (%); line: validation"


def test_the_budget_stands_once_where_all_lines_share_it() -> None:
    name = "discriminative/figure3/mnist-dr"
    figure = draw(find_tables("discriminative/figure3")[0], [run(name, "cpu")])
    assert figure is not None and figure.axes[0].get_xlabel() == "epoch; all cpu 16-filters-8-types"
    panels = drawn("discriminative/figure3", [run(name, "cpu"), run(name, "full")])
    assert {label for label in panels["MNIST"] if "DR" in label} == {"DR", "DR (cpu 16-filters-8-types)"}


def test_full_runs_hold_nothing_out_and_have_only_the_dot() -> None:
    full = run("fm/figure4/svhn-fm", "full", validation_accuracy=[None] * 3)
    (panel,) = drawn("fm/figure4", [full]).values()
    test, training = "FM agreement", "_FM agreement, training"  # of which the legend has one
    assert panel[test] == ([], []) and panel[training] == ([1, 2, 3], [50, 70, 80])
    assert sorted(points for _, points in panel.values()) == [[], [50, 70, 80], [75]]


def test_runs_of_two_cells_are_drawn_once() -> None:
    """Narrowed, the networks of 256 and of 64 filters are one."""
    names = ("cifar10-dynamic-3", "cifar10-dynamic-3-code")
    narrowed = drawn("fm/figure5", [run(f"fm/figure5/{names[0]}", "cpu")])["CIFAR-10"]
    assert set(narrowed) - {"_child2"} == {"Dynamic routing (3)", "_Dynamic routing (3), training"}
    full = drawn("fm/figure5", [run(f"fm/figure5/{name}", "full") for name in names])["CIFAR-10"]
    assert {"Dynamic routing (3)", "Dynamic routing (3), released code"} < set(full)


def test_losses_over_epochs() -> None:
    (panel,) = drawn("encapnet/figure4", [run("encapnet/figure4/encapnet-v1-ot", "full")]).values()
    assert panel == {"EncapNet * OT": ([1, 2, 3], CURVE["train_loss"])}


def test_values_against_iterations() -> None:
    home = "inverted-attention/figure4"
    records = [count(f"{home}/memory-{number}", 10.0 * number) for number in (3, 1)]
    records += [run(f"{home}/iterations-em-{number}", "full", accuracy=number / 10) for number in (1, 2)]
    panels = drawn(home, records)
    assert panels["memory"]["Inverted Dot-Product Attention, memory"] == ([1, 3], [10, 30])
    assert panels["routing iterations and ablations"]["EM Routing"] == ([1, 2], [10, 20])
    assert "EM routing" in panels and "dynamic routing" not in panels


def test_agreement_at_four_stages_of_the_first_run_of_each_routing() -> None:
    def stage(epoch: int, share: float) -> dict:
        values = {"routing": "em", "share": (share, 100.0 - share), "length": (0.0, 0.5)}
        return {"epoch": epoch, "layers": {"stack.0": values, "stack.1": values}}

    line = dict(run("encapnet/figure2/em-1", "cpu"))
    line["agreement"] = [stage(1, 10.0), stage(1, 10.0), stage(4, 20.0), stage(10, 30.0)]
    figure = draw(find_tables("encapnet/figure2")[0], [line])
    assert figure is not None
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    places = ("em, fifth layer", "em, class capsules")
    assert titles == [f"{place}, epoch {epoch}" for place in places for epoch in (1, 4, 10)]
    cells = [find_cell(f"encapnet/figure2/em-{name}") for name in ("1", "20", "80", "200", "length")]
    assert [cell.metric.read(line) for cell in cells] == [10, 10, 20, 30, 0.5]
    assert cells[0].metric.read(run("encapnet/figure2/em-1", "cpu")) is None


def test_figures_are_written_beside_their_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    Path("results/runs.jsonl").write_text(json.dumps(run("xnodr/figure5/mobilenet-xnodr-plain", "cpu")) + "\n")
    folder = Path("results/tables/xnodr")
    assert main(["table", "xnodr/figure*", "--write"]) == 0
    assert {path.stem for path in folder.glob("*.svg")} == {f"figure{number}" for number in (4, 5, 8, 9)}
    assert ElementTree.parse(folder / "figure5.svg").getroot().tag.endswith("svg")
    assert "](figure5.svg)" in (folder / "figure5.md").read_text()
    assert 'src="figure5.svg"' in (folder / "figure5.html").read_text()
    assert "svg" not in (folder / "figure6.md").read_text() + (folder / "figure6.html").read_text()
    before = (folder / "figure5.svg").read_bytes()
    assert main(["table", "xnodr/figure5", "--write"]) == 0
    assert (folder / "figure5.svg").read_bytes() == before
