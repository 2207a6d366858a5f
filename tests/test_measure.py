"""Numbers of a recipe's network that need no training."""

import os
from functools import partial

import pytest
import torch

from torchcaps.config import Config, DataConfig, ModelConfig
from torchcaps.papers import list_tables
from torchcaps.tables.cells import Count
from torchcaps.tables.measure import alone, inference_memory, step_memory
from torchcaps.tables.metrics import MEMORY

SMALL = Config(model=ModelConfig("cnn-6", {"channels": 2}), data=DataConfig("digits"), precision="fp32")


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own() -> None:
    """What this one holds, or has given back and kept, is none of it."""
    held = torch.ones(100_000_000)  # 400 MB
    here = inference_memory(SMALL, batch_size=2, device="cpu")
    assert 50 < alone(inference_memory, SMALL, batch_size=2, device="cpu") < here - 300 < here < 1e5
    assert held[0] == 1


@pytest.mark.slow
def test_what_goes_wrong_there_is_said_here() -> None:
    with pytest.raises(ValueError, match="device is 'abacus'"):
        alone(step_memory, SMALL, batch_size=2, device="abacus")
    with pytest.raises(ValueError, match="the process that measures was ended"):
        alone(end, SMALL)


def end(config: Config) -> float:
    os._exit(9)


def test_every_cell_of_memory_is_so_measured() -> None:
    counts = [cell.how for table in list_tables() for cell in table.cells if cell.metric == MEMORY]
    assert len(counts) > 6
    for how in counts:
        assert isinstance(how, Count) and isinstance(how.measure, partial) and how.measure.func is alone
