"""Budgets: what is made of a recipe where less time is to be had than its paper took.

- full: as the paper trains: the whole training split, and the last epoch.
- fast: the paper's network and data at full size, at most 30 epochs of a one-cycle schedule, the whole training split,
  and the last epoch, as papers train that pick nothing. Batch and rate are the paper's, or what was tuned for the
  family on a validation split, in runs of their own (`torchcaps.tables.tuned`). Any machine: precision and compiling
  are chosen there.
- short: `fast` in at most 8 epochs, a first number of a network whose 30 epochs take longer than a machine is there.
- cpu: meant for minutes on one core: the whole training split, 10 epochs, a narrowed network; step schedules become
  one-cycle, since compressed ones stop learning at their first step; bf16 where the machine multiplies in it natively.
- smoke: the full network on a handful of images, to see that it runs, and how fast.

`cpu` and `smoke` select the model on a validation split; the others where a paper selects an epoch, on its test split
or on validation images, and their cell says so. Where a paper plots test error over the epochs, `full`, `fast` and
`short` write it down after each; nothing is selected by it.
"""

from __future__ import annotations

from dataclasses import replace

from torchcaps.config import Config, DataConfig, ScheduleConfig
from torchcaps.data.catalogue import find
from torchcaps.data.facts import epoch_images
from torchcaps.names import check_choice
from torchcaps.plugins import imported, imported_for
from torchcaps.tables.budget_names import BUDGETS, EVIDENCE, Budget
from torchcaps.tables.cells import Cell, Narrow, Train
from torchcaps.tables.tuned import TUNED, change

FAST_EPOCHS, SHORT_EPOCHS = 30, 8
CPU_EPOCHS, CPU_STREAM = 10, 30_000  # images of an epoch, where they are composed without end
SMOKE_IMAGES, SMOKE_BATCH = 64, 16
ONE_CYCLE = ScheduleConfig("one-cycle", warmup=0.2)
HELD = 0.1  # share of the training split that the model is selected on


def apply_budget(config: Config, budget: Budget, cell: Cell) -> Config:
    """Return what `budget` makes of `config`, the recipe of `cell`, which must be one that is trained.

    The recipe's name becomes that of the cell, the budget and, where the network is narrowed, its widths.

    Raises:
        ValueError: for an unknown budget.
    """
    check_choice("budget", budget, BUDGETS)
    assert isinstance(cell.how, Train), cell.id
    config = replace(config, recipe=".".join([*cell.id.split("/"), budget, *_width(cell.how.cpu, budget)]))
    if imported_for(cell.how.build):  # a table of one's own: what else was imported may be its model's routing
        config = replace(config, imports=imported())
    match budget:
        case "full":
            return replace(_whole(config, cell.how), test_curve=cell.how.plotted)
        case "fast":
            fast = (cell.how.fast or _same)(_tune(_fast(_whole(config, cell.how))))
            return replace(fast, test_curve=cell.how.plotted)
        case "short":
            fast, usual = apply_budget(config, "fast", cell), min(config.epochs, FAST_EPOCHS)
            more = max(1.0, fast.epochs / usual)  # passes over a share of the images, of which there are more
            epochs = min(fast.epochs, round(more * SHORT_EPOCHS))
            return replace(fast, recipe=config.recipe, epochs=epochs)
        case "cpu":
            return _narrow(_compress(config), cell.how.cpu)
        case "smoke":
            return _smoke(config)


def fields_of(budget: Budget | None) -> frozenset[str]:
    """Return the fields that a budget sets, which then do not follow from model and data."""
    if budget in (None, "full"):
        return frozenset()
    return frozenset({"epochs", "batch_size"} if budget == "smoke" else {"epochs"})


def width(cell: Cell, budget: Budget) -> str:
    """Return the name of the narrowed widths that `cell` is trained with; empty where the network is the recipe's
    own.
    """
    return "".join(_width(cell.how.cpu, budget)) if isinstance(cell.how, Train) else ""


def _width(narrow: Narrow | None, budget: Budget) -> list[str]:
    return [narrow.name] if narrow is not None and budget == EVIDENCE else []


def _same(config: Config) -> Config:
    return config


def _selected(data: DataConfig) -> DataConfig:
    return replace(data, validation=data.validation or HELD)


def _whole(config: Config, how: Train) -> Config:
    """Return `config` with the whole training split, unless the epoch is chosen on a part of it."""
    return config if how.selected else replace(config, data=replace(config.data, validation=0.0))


def _fast(config: Config) -> Config:
    """Return one cycle of the rate over fewer epochs; all else is the recipe's."""
    return replace(
        config,
        schedule=ONE_CYCLE,
        epochs=min(config.epochs, FAST_EPOCHS),
        precision="auto",
        compile="auto",
    )


def _tune(config: Config) -> Config:
    """Return `config` with what was tuned on validation for the family of its model, where anything was."""
    found = next((each for each in TUNED if each.of(config)), None)
    return config if found is None else change(config, found.changes)


def _compress(config: Config) -> Config:
    """Return it with ten epochs, the schedule compressed to them; but cycles keep their length, since each halves
    a peak or a dip of the rate.

    Compressed ones ended the learning of XnODR's networks after five of ten epochs. Steps become one cycle: compressed
    ones ended the learning of others at their first milestone.
    """
    data, epochs = _selected(config.data), CPU_EPOCHS
    steps = epochs / config.epochs
    entry, _ = find(data.name)
    if entry.compose is not None:
        steps *= CPU_STREAM / epoch_images(data)
        data = replace(data, compose=replace(data.compose, epoch=CPU_STREAM, held=data.compose.held or 10_000))
    if config.schedule.name == "triangular2":
        steps = 1.0
    schedule = replace(config.schedule, step_size=max(1, round(config.schedule.step_size * steps)))
    if schedule.name == "step":
        schedule = ONE_CYCLE
    return replace(config, data=data, schedule=schedule, epochs=epochs, precision="auto")


def _narrow(config: Config, narrow: Narrow | None) -> Config:
    if narrow is None:
        return config
    model = replace(config.model, options=config.model.options | dict(narrow.options))
    return (narrow.change or _same)(replace(config, model=model))


def _smoke(config: Config) -> Config:
    """Return one epoch of a few small batches: what is seen is only whether the recipe runs, and how fast."""
    return replace(
        config,
        data=replace(_selected(config.data), limit=SMOKE_IMAGES, fraction=1.0),
        schedule=ScheduleConfig("constant"),
        epochs=1,
        agreement=min(config.agreement, SMOKE_BATCH),
        batch_size=min(config.batch_size, SMOKE_BATCH),
        precision="fp32",
    )
