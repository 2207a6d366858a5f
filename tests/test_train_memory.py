"""Networks that are too large: counted without memory, and refused before they are built, with sizes that would do."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from tiny import tiny_config

from torchcaps import memory as machine
from torchcaps.config import ModelConfig, OptimiserConfig
from torchcaps.cost import count_cost, measure_cost
from torchcaps.models import create_model
from torchcaps.train import fit, given, memory

SHAPE = {"name": "capsnet", "num_classes": 196, "in_channels": 3, "image_size": (128, 128)}


def test_cost_of_a_terabyte_of_weights_takes_none() -> None:
    cost = count_cost("capsnet", num_classes=196, in_channels=3, image_size=1500)
    assert cost.weight_memory > 1e12 and cost.parameters == cost.weight_memory // 4


@pytest.mark.parametrize("name", ["capsnet", "cnn-6"])
def test_cost_without_memory_is_that_of_the_model(name: str) -> None:
    options = {"image_size": 20, "in_channels": 3}
    if name == "capsnet":
        options |= {"channels": 8, "primary": 2}
    assert count_cost(name, **options) == measure_cost(create_model(name, **options), 20, 3)


def test_sizes_that_are_suggested_do() -> None:
    flags = list(memory.suggest(SHAPE, 3e9))
    assert [flag.split(" (")[0] for flag in flags] == [
        "--model.options stride 4",
        "--model.options primary 8",
        "--data.image-size 64",
    ]
    sizes = [float(re.findall(r"\((.*) GB\)", flag)[0]) for flag in flags]
    assert all(size <= 3 for size in sizes)
    assert sizes[0] == pytest.approx(memory.weight_bytes(SHAPE | {"stride": 4}) / 1e9, abs=0.01)
    assert not list(memory.suggest(SHAPE, 1e3))
    assert list(memory.suggest(SHAPE, 3e9, "--data.enlarge"))[-1].startswith("--data.enlarge 64 (")


@pytest.mark.parametrize(
    ("optimiser", "copies"),
    [(OptimiserConfig("adam"), 4), (OptimiserConfig("sgd", momentum=0.0), 2), (OptimiserConfig("sgd"), 3),
     (OptimiserConfig("rmsprop"), 4)],
)  # fmt: skip
def test_refused_before_it_is_built(tmp_path, monkeypatch, optimiser, copies) -> None:
    options = {"kernel": 2, "channels": 8, "primary": 2}
    config = tiny_config(tmp_path, epochs=1, model=ModelConfig("capsnet", options), optimiser=optimiser)
    weights = sum(each.nbytes for each in create_model("capsnet", image_size=8, **options).parameters())
    monkeypatch.setattr(memory, "free_memory", lambda device: copies * weights - 1)
    monkeypatch.setattr(given, "create_model", lambda **shape: pytest.fail("it was built"))
    with pytest.raises(ValueError, match=rf"8x8 pixels and 10 classes has .* moments of {optimiser.name}.*resnet18"):
        fit(config)
    assert not list(tmp_path.iterdir())
    shape = {"name": "capsnet", "num_classes": 10, "in_channels": 1, "image_size": (8, 8), **options}
    needed = copies * memory.weight_bytes(shape)
    for processes in (1, 2):
        monkeypatch.setattr(memory, "free_memory", lambda device, bytes=processes * needed: bytes)
        memory.check_memory(shape, replace(config, processes=processes), torch.device("cpu"))
        monkeypatch.setattr(memory, "free_memory", lambda device, bytes=processes * needed: bytes - 1)
        with pytest.raises(ValueError, match=f"training takes {processes * needed / 1e9:.3g} GB"):
            memory.check_memory(shape, replace(config, processes=processes), torch.device("cpu"))


def test_limits_of_the_machine_are_read(monkeypatch, tmp_path) -> None:
    free = machine.free_memory()
    assert free is None or free > 1e6
    (tmp_path / "memory.max").write_text("123456789\n")
    monkeypatch.setattr(machine, "CGROUPS", (str(tmp_path / "memory.max"), str(tmp_path / "nowhere")))
    assert machine.free_memory(torch.device("cpu")) == 123456789
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.free_memory() != 123456789
