"""What a budget makes of a recipe: a pure function, whose result says what was done."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from tiny import tiny_config

from torchcaps import plugins
from torchcaps.config import AugmentConfig, ComposeConfig, Config, DataConfig, OptimiserConfig, ScheduleConfig
from torchcaps.papers import create_recipe, find_cell
from torchcaps.tables.budget_names import BUDGETS, Budget
from torchcaps.tables.budgets import apply_budget, width
from torchcaps.tables.cells import Cell, Narrow, Train
from torchcaps.tables.records import config_hash

CONFIG = Config(
    data=DataConfig("cifar10", augment=AugmentConfig(crop=4)),
    optimiser=OptimiserConfig("sgd", lr=0.1),
    schedule=ScheduleConfig("step", milestones=(150, 250)),
    epochs=350,
    batch_size=128,
)
NARROW = Narrow("8-wide", {"width": 8}, lambda config: replace(config, clip=1.0))
CELL = Cell("a", "row", "column", Train(lambda: CONFIG, NARROW), home="paper/table1")


def test_full_is_the_paper_on_all_of_the_training_split() -> None:
    full = apply_budget(CONFIG, "full", CELL)
    assert full == replace(CONFIG, recipe="paper.table1.a.full", data=replace(CONFIG.data, validation=0.0))


def test_a_cell_of_an_imported_file_says_so_in_its_config(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> Config:
        return CONFIG

    build.__module__ = "mine"
    monkeypatch.setattr(plugins, "_LOADED", {"other.py 0": frozenset({"other"}), "mine.py 1": frozenset({"mine"})})
    own = replace(CELL, how=Train(partial(build)))
    assert apply_budget(CONFIG, "smoke", own).imports == ("other.py 0", "mine.py 1")
    assert apply_budget(CONFIG, "smoke", CELL).imports == ()
    assert config_hash(apply_budget(CONFIG, "smoke", own)) != config_hash(apply_budget(CONFIG, "smoke", CELL))


def test_fast_is_the_full_network_and_data_in_one_cycle() -> None:
    fast = apply_budget(CONFIG, "fast", CELL)
    assert (fast.schedule.name, fast.precision, fast.compile, fast.epochs) == ("one-cycle", "auto", "auto", 30)
    assert (fast.model, fast.batch_size, fast.optimiser) == (CONFIG.model, CONFIG.batch_size, CONFIG.optimiser)
    assert fast.data == replace(CONFIG.data, validation=0.0)  # the last epoch, on the whole training split
    assert apply_budget(replace(CONFIG, epochs=7), "fast", CELL).epochs == 7
    assert apply_budget(CONFIG, "short", CELL) == replace(fast, recipe="paper.table1.a.short", epochs=8)
    assert apply_budget(replace(CONFIG, epochs=7), "short", CELL).epochs == 7
    own = replace(CELL, how=Train(lambda: CONFIG, fast=lambda config: replace(config, epochs=12)))
    assert apply_budget(CONFIG, "fast", own).epochs == 12


def test_where_a_paper_selects_on_test_ours_selects_on_the_split_of_its_recipe() -> None:
    selected = replace(CELL, how=Train(lambda: CONFIG, NARROW, selected=True))
    for budget in BUDGETS:
        found, usual = (apply_budget(CONFIG, budget, cell) for cell in (selected, CELL))
        assert found.data.validation == 0.1 and found == replace(usual, data=found.data), budget
    cell = find_cell("efficient-capsnet/table2/efficient-capsnet")
    assert isinstance(cell.how, Train) and apply_budget(cell.how.build(), "fast", cell).data.validation == 0.1


def test_what_a_paper_plots_is_recorded_where_it_is_reproduced() -> None:
    plotted = replace(CELL, how=Train(lambda: CONFIG, NARROW, plotted=True))
    recorded = {budget: apply_budget(CONFIG, budget, plotted) for budget in BUDGETS}
    assert {budget: config.test_curve for budget, config in recorded.items()} == {
        "full": True,
        "fast": True,
        "short": True,
        "cpu": False,
        "smoke": False,
    }
    for budget, config in recorded.items():
        assert replace(config, test_curve=False) == apply_budget(CONFIG, budget, CELL)


def test_cpu_narrows_and_shortens_and_says_so() -> None:
    cpu = apply_budget(CONFIG, "cpu", CELL)
    assert cpu.recipe == "paper.table1.a.cpu.8-wide" and width(CELL, "cpu") == "8-wide" and not width(CELL, "full")
    assert (cpu.epochs, cpu.schedule.name, cpu.model.options["width"], cpu.clip) == (10, "one-cycle", 8, 1.0)
    assert cpu.data.limit is None and cpu.data.validation == 0.1
    wide = replace(CELL, how=Train(lambda: CONFIG))
    assert apply_budget(CONFIG, "cpu", wide).recipe == "paper.table1.a.cpu"


def test_cpu_cuts_streams_and_schedules_in_steps() -> None:
    data = DataConfig("multimnist", compose=ComposeConfig(epoch=1_200_000))
    config = replace(CONFIG, data=data, schedule=ScheduleConfig("exponential", step_size=20_000), epochs=20)
    cpu = apply_budget(config, "cpu", CELL)
    assert (cpu.data.compose.epoch, cpu.data.compose.held) == (30_000, 10_000)
    assert cpu.schedule.step_size == 20_000 * (10 * 30_000) / (20 * 1_200_000)


@pytest.mark.parametrize("name", ["mobilenet-xnodr-plain", "resnet-xnodr-plain", "resnet-xnodr-plain-multimnist"])
def test_cpu_keeps_the_length_of_cycles(name) -> None:
    cell = find_cell(f"xnodr/{'table4' if name.endswith('multimnist') else 'figure8'}/{name}")
    assert isinstance(cell.how, Train)
    schedule = apply_budget(cell.how.build(), "cpu", cell).schedule
    assert (schedule.name, schedule.step_size) == ("triangular2", 6000)


@pytest.mark.parametrize(("network", "called"), [("mobilenet", "mobilenetv2-035"), ("resnet", "resnet50-8-16-32-64")])
def test_cpu_narrows_both_networks_of_xnodr(network, called) -> None:
    cell = find_cell(f"xnodr/figure8/{network}-xnodr-plain")
    assert isinstance(cell.how, Train)
    full, cpu = (apply_budget(cell.how.build(), budget, cell) for budget in ("full", "cpu"))
    assert width(cell, "cpu") == called and cpu.model != full.model and cpu.compile


def test_smoke_is_the_full_network_on_a_few_images() -> None:
    smoke = apply_budget(CONFIG, "smoke", CELL)
    assert smoke.model == CONFIG.model
    assert (smoke.epochs, smoke.batch_size, smoke.data.limit, smoke.schedule.name) == (1, 16, 64, "constant")


def test_unknown_budget_is_named() -> None:
    with pytest.raises(ValueError, match="budget is 'huge'; it must be 'full', 'fast', 'short', 'cpu' or 'smoke'"):
        apply_budget(CONFIG, "huge", CELL)  # pyright: ignore[reportArgumentType]


def test_hash_is_of_what_is_computed(tmp_path) -> None:
    config = tiny_config(tmp_path)
    same = replace(
        config, seed=5, out=tmp_path / "b", recipe="x", device="auto", data=replace(config.data, root=tmp_path)
    )
    same = replace(same, test_curve=True)
    assert config_hash(same) == config_hash(config)
    changed = [
        replace(config, epochs=3),
        replace(config, model=replace(config.model, options={"width": 5})),
        replace(config, data=replace(config.data, augment=AugmentConfig(shift=1))),
        replace(config, data=replace(config.data, validation=0.0)),
        replace(config, processes=2),  # each has a batch norm of its own
    ]
    assert len({config_hash(each) for each in [config, *changed]}) == 6


@pytest.mark.parametrize("budget", ["full", "fast", "short"])
@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("efficient-capsnet-mnist", "efficient-capsnet/table2/efficient-capsnet"),
        ("variational-bayes-smallnorb", "variational-bayes/text-readme/smallnorb"),
        ("classify", None),
    ],
)
def test_a_recipe_by_name_holds_out_what_its_cell_does(name: str, cell: str | None, budget: Budget) -> None:
    held = create_recipe(name, budget).data.validation
    assert held > 0
    if cell is not None:
        assert create_recipe(cell, budget).data.validation == held
