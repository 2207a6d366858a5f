"""What the budget `fast` takes for a family is the best of its short runs, none of which saw a test image."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from torchcaps.config import Config, from_plain
from torchcaps.papers import find_cell
from torchcaps.tables.budgets import apply_budget
from torchcaps.tables.cells import Train
from torchcaps.tables.lines import read_lines
from torchcaps.tables.tuned import TUNED, Tuned, change

TRIALS = read_lines(Path(__file__).parent.parent / "results" / "tuning.jsonl")


assert TRIALS, "there are no trials"


def _kind(line: dict[str, Any]) -> tuple[str, int, int]:
    """Return what two trials share when one says something about the other: the cell, its length and the seed."""
    return line["cell"], line["epochs"], line["seed"]


@pytest.mark.parametrize("entry", TUNED, ids=lambda entry: entry.family)
def test_an_entry_is_the_best_of_its_familys_trials(entry: Tuned) -> None:
    family = [line for line in TRIALS if fnmatchcase(line["config"]["model"]["name"], entry.family)]
    kinds = {_kind(line) for line in family if line["changes"] == entry.changes}
    assert len(kinds) == 1, "the entry's trial is missing, or has several lengths"
    mine = [line for line in family if _kind(line) in kinds]
    assert len({line["changes"] for line in mine}) > 1, "nothing was compared"
    assert max(mine, key=lambda line: line["validation_accuracy"])["changes"] == entry.changes
    cell = find_cell(mine[0]["cell"])
    assert isinstance(cell.how, Train)
    fast = apply_budget(cell.how.build(), "fast", cell)
    assert entry.of(fast) and change(fast, entry.changes) == fast


def test_trials_hold_images_out() -> None:
    for line in TRIALS:
        config = from_plain(Config, line["config"])
        assert config.data.validation == 0.1 and line["validation_accuracy"] == line["curve"][-1]
        assert "test_accuracy" not in line


def test_changes_are_names_and_values() -> None:
    config = change(Config("x"), "optimiser.lr=0.5,batch_size=32,optimiser.name=sgd")
    assert (config.optimiser.lr, config.batch_size, config.optimiser.name) == (0.5, 32, "sgd")
    assert change(config, "") == config
    with pytest.raises(ValueError, match="speed"):
        change(config, "optimiser.speed=1")
