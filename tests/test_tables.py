"""The tables of the papers: all of them there, each cell complete, and its network the one that is registered."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from torchcaps.config import Config, from_plain, to_plain
from torchcaps.data.catalogue import CATALOGUE
from torchcaps.models import create_model, list_models
from torchcaps.names import unknown
from torchcaps.recipes import find_cell, find_tables, list_tables
from torchcaps.recipes.budgets import BUDGETS, apply_budget
from torchcaps.recipes.cells import Cell, Combine, Count, Formula, Impossible, Quoted, Train
from torchcaps.recipes.measure import model_arguments
from torchcaps.recipes.records import config_hash
from torchcaps.train.check import check_config

TABLES = {
    "discriminative": ["table2", "figure2", "figure3", "figure4", "text-multimnist"],
    "encapnet": ["table1", "table3", "table4", "table5", "figure2", "figure4"],
    "fm": [*(f"table{number}" for number in range(1, 7)), "figure4", "figure5", "text-multimnist"],
    "inverted-attention": ["table1", "figure4", "figure5"],
    "xnodr": [f"{kind}{number}" for kind in ("table", "figure") for number in range(4, 10)],
}
CELLS = [cell for table in list_tables() for cell in table.cells]
BUILT = {config_hash(cell.build()): cell for cell in CELLS if cell.build is not None}
NETWORKS = {json.dumps(model_arguments(cell.build()), sort_keys=True): cell for cell in BUILT.values() if cell.build}


def test_every_table_is_there() -> None:
    assert {table.id for table in list_tables()} == {
        f"{paper}/{name}" for paper, names in TABLES.items() for name in names
    }


def test_cells_have_names_of_their_own() -> None:
    assert [name for name, count in Counter(cell.id for cell in CELLS).items() if count > 1] == []
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", cell.name) for cell in CELLS)


@pytest.mark.parametrize("table", list_tables(), ids=lambda table: table.id)
def test_every_cell_says_where_it_stands(table) -> None:
    assert table.cells and table.printed and table.title
    for cell in table.cells:
        assert cell.row and cell.column and cell.metric.name, cell.id
        assert table.paper.citation in table.source(cell) and cell.row in table.source(cell)
        for published in cell.published:
            assert published.text == published.text.strip() != ""
            assert not published.spread or (published.number is not None and float(published.spread) >= 0)
            assert published.kind == "mean" or not published.spread


def test_only_what_can_be_run_has_a_recipe() -> None:
    for cell in CELLS:
        assert (cell.build is None) == isinstance(cell.how, Quoted | Impossible | Combine | Formula), cell.id
        if isinstance(cell.how, Quoted):
            assert cell.published, f"{cell.id} quotes nothing"
        if isinstance(cell.how, Impossible):
            assert cell.how.reason, cell.id
        if isinstance(cell.how, Combine):
            parts = [find_cell(name) for name in cell.how.parts]
            assert len(parts) > 1 and all(part.metric == cell.metric for part in parts), cell.id


@pytest.mark.parametrize("cell", BUILT.values(), ids=lambda cell: cell.id)
def test_recipe_is_a_complete_config(cell: Cell) -> None:
    assert cell.build is not None
    config = cell.build()
    assert from_plain(Config, json.loads(json.dumps(to_plain(config)))) == config
    assert config.data.name in CATALOGUE
    if isinstance(cell.how, Train):
        names = [apply_budget(config, budget, cell).recipe for budget in BUDGETS]
        assert len(set(names)) == len(BUDGETS)
        for budget in BUDGETS:
            check_config(apply_budget(config, budget, cell))


@pytest.mark.parametrize("cell", NETWORKS.values(), ids=lambda cell: cell.id)
def test_recipe_names_a_model_and_its_options(cell: Cell) -> None:
    """Of full size, hence without memory; `make test-all` trains a step of each."""
    import torch

    assert cell.build is not None
    arguments = model_arguments(cell.build())
    if arguments["name"] not in list_models() and "." not in arguments["name"]:
        raise unknown("model", arguments["name"], list_models())
    with torch.device("meta"):
        assert sum(each.numel() for each in create_model(**arguments).parameters())


def test_wrong_names_are_answered_by_the_nearest() -> None:
    with pytest.raises(ValueError, match="no table is named 'discriminative/table1'; the nearest is"):
        find_tables("discriminative/table1")
    with pytest.raises(
        ValueError, match="no cell of discriminative/table2 is named 'mnist-l3'; the nearest is 'mnist-l"
    ):
        find_cell("discriminative/table2/mnist-l3")


def test_counts_are_not_trained() -> None:
    assert all(cell.metric.unit in ("M", "MB", "Mb", "ms", "s") for cell in CELLS if isinstance(cell.how, Count))
