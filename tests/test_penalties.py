"""What a model adds to its loss: written apart, weighed by a flag, and the evidence on its weight."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_config

from torchcaps import create_model
from torchcaps.config import DataConfig, LossConfig, ModelConfig
from torchcaps.papers import find_cell
from torchcaps.tables.budgets import apply_budget
from torchcaps.tables.metrics import CLASS_LOSS, penalty
from torchcaps.tables.records import config_hash, describe_run
from torchcaps.train import fit
from torchcaps.train.meter import Meter


def test_the_penalty_of_each_unit_is_written_apart_from_the_loss(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = ModelConfig("encapnet-v1-feedback", {"types": 2, "lengths": (1, 1), "poses": (2, 4), "units": 2})
    loss = LossConfig("margin", penalty=0.5, penalty_warmup=0.6)
    data = DataConfig("digits", limit=48)
    config = tiny_config(tmp_path, model=model, loss=loss, data=data, epochs=2, batch_size=16)
    folder = fit(config).folder
    first, last = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert list(first["penalties"]) == ["M1", "M1-skip", "M2", "M2-skip"]
    whole = [sum(line["penalties"].values()) for line in (first, last)]
    # three steps an epoch, at 0, 0.2, 0.4 and 0.6, 0.8, 1 of the run: shares of 0, 1/3, 2/3 and then 1
    assert last["train_penalty"] == pytest.approx(0.5 * whole[1]) and min(whole) > 0
    assert 0 < first["train_penalty"] < 0.5 * whole[0] * 2 / 3
    assert 0 < last["train_loss"] - last["train_penalty"] < 1
    said = capfd.readouterr().err
    assert f"of which penalty {last['train_penalty']:.4f}, accuracy" in said and "penalties: M1 0." in said
    record = describe_run(folder)
    curve = record["curve"]
    assert curve["train_penalty"] == pytest.approx([first["train_penalty"], last["train_penalty"]], abs=1e-5)
    assert {name: values[1] for name, values in curve["penalties"].items()} == pytest.approx(
        last["penalties"], abs=1e-5
    )
    assert CLASS_LOSS.read(record) == pytest.approx(last["train_loss"] - last["train_penalty"], abs=1e-4)
    assert penalty("M1-skip").read(record) == pytest.approx(last["penalties"]["M1-skip"], abs=1e-5)
    assert penalty("M3").read(record) is None
    plain = fit(tiny_config(tmp_path, data=data, epochs=1, batch_size=16)).folder
    assert not {"train_penalty", "penalties"} & set(json.loads((plain / "metrics.jsonl").read_text()))
    record = describe_run(plain)
    assert set(record["curve"]) == {"train_loss", "train_accuracy", "validation_accuracy"}
    assert CLASS_LOSS.read(record) == record["curve"]["train_loss"][-1] and penalty("M1").read(record) is None


def test_a_penalty_cut_in_mid_epoch_goes_on(tmp_path: Path) -> None:
    meters = [Meter(torch.device("cpu"), terms=2) for _ in range(2)]
    batch = torch.tensor(1.0), torch.eye(3), torch.arange(3), torch.tensor([0.5, 0.25, 0.125])
    meters[0].update(*batch)
    meters[1].load(meters[0].state())
    meters[1].update(*batch)
    assert meters[1].compute().penalties == (0.5, 0.25, 0.125)


def test_the_weights_of_the_evidence_are_of_one_network() -> None:
    """Narrowed alike; without a unit it is the network (f) of Table 1, whose runs are its own."""
    weights = ("none", "weight-0-01", "weight-0-1", "weight-1", "weight-10")
    cells = [find_cell(f"encapnet/text-feedback/{name}") for name in weights]
    configs = [apply_budget(cell.build(), "cpu", cell) for cell in cells]  # pyright: ignore[reportOptionalCall]
    assert [config.loss.penalty for config in configs] == [None, 0.01, 0.1, 1, 10]
    assert len({config_hash(config) for config in configs}) == 5
    assert {str(config.model.options) for config in configs} == {"{'types': 4, 'channels': 8}"}
    row = find_cell("encapnet/table1/master-aide-cifar10")
    assert config_hash(apply_budget(row.build(), "cpu", row)) == config_hash(configs[0])  # pyright: ignore[reportOptionalCall]
    assert create_model(configs[1].model.name, in_channels=3, image_size=32, **configs[1].model.options).penalties == (
        "M1",
    )


@pytest.mark.parametrize("flag", [{"penalty": 0.1}, {"penalty_warmup": 0.1}])
def test_a_weight_of_a_penalty_that_is_not_there_is_refused(tmp_path: Path, flag: dict[str, float]) -> None:
    config = tiny_config(tmp_path, loss=LossConfig(**flag))  # pyright: ignore[reportArgumentType]
    (name,) = flag
    with pytest.raises(ValueError, match=rf"loss\.{name} is 0\.1, but tiny adds no penalty"):
        fit(config)
    for wrong in (replace(config, loss=LossConfig(penalty=-1.0)), replace(config, loss=LossConfig(penalty_warmup=2.0))):
        with pytest.raises(ValueError, match=r"loss\.penalty(_warmup)? is (-1|2)\.0"):
            fit(wrong)
