"""Batch norm's statistics for the evaluations of short runs: the plain mean over the first training batches."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_config
from torch import Tensor

from torchcaps.config import (
    AugmentConfig,
    ComposeConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimiserConfig,
    Option,
)
from torchcaps.data import Batches, Images, load_data
from torchcaps.models import Model, create_model
from torchcaps.revisions import revisions_of
from torchcaps.train import RunFolder, fit, learner
from torchcaps.train.processes import build_fabric
from torchcaps.train.stages import held_part
from torchcaps.train.statistics import count_batches, list_norms, measure_statistics

SMALL: dict[str, Option] = {"blocks": (1, 1), "width": 8, "primary": 2, "pose": 4, "capsules": ()}
DATA = DataConfig("digits", augment=AugmentConfig(shift=2))


def network(side: int = 8, **options: object) -> Model:
    torch.manual_seed(0)
    return create_model("fm-resnet-cifar10", num_classes=10, in_channels=1, image_size=side, **SMALL | options)


def batches(data: DataConfig = DATA, size: int = 64) -> Batches:
    return load_data(data).training(data, size, seed=3)


def statistics(model: Model) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if "running" in name}


def by_hand(model: Model, chosen: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The mean of what each batch alone leaves in every norm."""
    each = []
    for images, labels in chosen:
        alone = copy.deepcopy(model).eval()
        for norm in list_norms(alone):
            norm.train().momentum = 1.0
        with torch.no_grad():
            alone(images, labels)
        each.append(statistics(alone))
    return {name: torch.stack([found[name] for found in each]).mean(0) for name in each[0]}


@pytest.mark.parametrize(
    "options",
    [{"capsules": (3,)}, {"batch_norm": "pair"}, {"routing": "dynamic", "batch_norm": "child"}, {"decoder": True}],
)
def test_statistics_are_the_mean_over_the_first_batches_without_augmentation(options: dict) -> None:
    model, joint = network(**options), batches()
    model.train()(next(joint.epoch(0))[0])  # running statistics that have begun
    before, modes = model.state_dict(), [each.training for each in model.modules()]
    before = {name: value.clone() for name, value in before.items()}
    fabric = build_fabric(tiny_config(Path()))
    measured = measure_statistics(fabric, model, joint, 5)
    plain = list(islice(replace(joint, augment=None).epoch(0), 5))
    expected = by_hand(model, plain)
    assert len(expected) == 2 * len(list_norms(model)) > 8
    for name, value in statistics(measured).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(value, before[name])
    stem = model.get_submodule("backbone.stem")
    first = torch.stack([stem(images).detach().mean((0, 2, 3)) for images, _ in plain]).mean(0)
    torch.testing.assert_close(measured.get_buffer("backbone.blocks.0.norm1.running_mean"), first)
    assert [each.training for each in model.modules()] == modes
    assert not any(each.training for each in measured.modules())
    assert [each.momentum for each in list_norms(measured)] == [each.momentum for each in list_norms(model)]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again = measure_statistics(fabric, model, replace(joint, augment=AugmentConfig(rotate=40.0)), 5)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in measured.state_dict().items())


def test_a_part_that_is_held_keeps_its_statistics() -> None:
    joint = batches()
    model = network(joint.images.shape[-1])
    measured = measure_statistics(build_fabric(tiny_config(Path())), model, joint, 2, held="backbone")
    before, after = statistics(model), statistics(measured)
    held = {name for name in before if name.startswith("backbone.")}
    assert held and held < set(before)
    assert all(torch.equal(after[name], before[name]) == (name in held) for name in before)
    config = tiny_config(Path(), head_epochs=2)
    assert [held_part(config, epoch) for epoch in range(4)] == ["backbone", "backbone", "", ""]


def test_the_decoder_sees_the_parts_of_overlapped_images() -> None:
    data = DataConfig("multimnist", compose=ComposeConfig(base="digits", epoch=64, held=16))
    joint = batches(data, 16)
    model = network(joint.images.shape[-1], decoder=True)
    measured = measure_statistics(build_fabric(tiny_config(Path())), model, joint, 3, parts=True)
    shown = [(images, joint.parts(0, step)) for step, (images, _) in enumerate(islice(joint.epoch(0), 3))]
    expected = by_hand(model, [(images, parts.labels) for images, parts in shown if parts is not None])
    for name, value in statistics(measured).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("momentum", "epochs", "count"), [(0.01, 99, 32), (0.01, 100, 0), (0.1, 9, 32), (0.1, 10, 0), (None, 1, 0)]
)
def test_running_statistics_serve_from_ten_over_the_momentum(momentum: float | None, epochs: int, count: int) -> None:
    """Of 10 steps an epoch; the slowest norm decides, and one that averages over all batches is none of them."""
    pixels = torch.zeros(640, 1, 8, 8, dtype=torch.uint8)
    images = Images(pixels, torch.zeros(640, dtype=torch.int64), ("a",))
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(1, momentum=momentum), torch.nn.BatchNorm2d(1, momentum=0.5))
    assert count_batches(model[:1], Batches(images, 64, drop_last=True), epochs) == min(count, 10)
    if momentum is not None:
        assert count_batches(model, Batches(images, 64, drop_last=True), epochs) == min(count, 10)
    assert count_batches(torch.nn.Conv2d(1, 1, 1), Batches(images, 64), epochs) == 0
    assert count_batches(torch.nn.BatchNorm2d(1, track_running_stats=False), Batches(images, 64), 1) == 0


def test_as_many_batches_as_hold_2048_images() -> None:
    images = load_data(replace(DATA, validation=0.0)).train
    assert isinstance(images, Images)
    for size, count in ((4, 359), (300, 4), (1437, 1)):
        assert count_batches(network(), Batches(images, size, drop_last=True), 1) == count
    wide = replace(images, pixels=images.pixels.repeat(2, 1, 1, 1), labels=images.labels.repeat(2))
    for size, count in ((8, 256), (300, 7), (2000, 1)):
        assert count_batches(network(), Batches(wide, size, drop_last=True), 1) == count


def short(out: Path, data: DataConfig = DATA, **changes: Any) -> Config:
    """20 steps of 64 digits an epoch, where 1,000 would be enough; 22 where none are held out."""
    return tiny_config(
        out,
        model=ModelConfig("fm-resnet-cifar10", SMALL),
        data=data,
        loss=LossConfig("cross-entropy"),
        optimiser=OptimiserConfig("adam", lr=0.03),
        **{"epochs": 2, "batch_size": 64} | changes,  # pyright: ignore[reportArgumentType]
    )


def buffers(folder: Path, checkpoint: str) -> dict[str, Tensor]:
    return {
        name: value for name, value in load_file(folder / checkpoint / "model.safetensors").items() if "running" in name
    }


def test_a_short_run_is_evaluated_with_measured_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = short(tmp_path / "measured", DataConfig("digits", validation=0.0))
    result = fit(config)
    with monkeypatch.context() as patch:
        patch.setattr(learner, "count_batches", lambda *args, **options: 0)
        plain = fit(replace(config, out=tmp_path / "plain"))
    last = load_file(result.folder / "last" / "model.safetensors")
    other = load_file(plain.folder / "last" / "model.safetensors")
    assert all(torch.equal(value, other[name]) for name, value in last.items()), "training goes on as without"
    best = load_file(result.folder / "best" / "model.safetensors")
    assert {name for name, value in best.items() if not torch.equal(value, last[name])} == {
        name for name in best if "running" in name or "tracked" in name
    }
    model = network()
    model.load_state_dict(last)
    joint = load_data(config.data).training(config.data, 64, config.seed)
    expected = measure_statistics(build_fabric(config), model, joint, 22)
    for name, value in statistics(expected).items():
        torch.testing.assert_close(value, best[name], rtol=1e-4, atol=1e-5)
    assert result.test_accuracy > plain.test_accuracy + 0.1
    run = RunFolder(result.folder)
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert run.read("result.json")["statistics_batches"] == run.read("environment.json")["statistics_batches"] == 22
    assert [line["statistics_batches"] for line in lines] == [22, 22]


@pytest.mark.parametrize("changes", [{"options": {}}, {"options": {"norm": True}, "epochs": 20}])
def test_other_runs_take_running_statistics(tmp_path: Path, changes: dict) -> None:
    """Without batch norm, and of 100 steps by torch's momentum."""
    result = fit(tiny_config(tmp_path, **changes))
    run = RunFolder(result.folder)
    assert run.read("result.json")["statistics_batches"] is None
    assert "statistics_batches" not in run.read("environment.json")
    assert "statistics_batches" not in (result.folder / "metrics.jsonl").read_text()
    if "epochs" not in changes:
        assert buffers(result.folder, "best") == buffers(result.folder, "last") == {}


def test_the_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(short(tmp_path, epochs=1))
    assert "20 steps are too few for running statistics, so each evaluation takes those of 20 training batches" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("name", "data", "epochs", "raised"),
    [
        ("fm-resnet-affnist", DataConfig("mnist", validation=0.1), 2, True),
        ("fm-resnet-affnist", DataConfig("mnist", validation=0.1), 3, False),
        ("fm-resnet-affnist", DataConfig("expanded-mnist", compose=ComposeConfig(epoch=12_800)), 9, True),
        ("cnn-6", DataConfig("mnist", validation=0.1), 1, False),
        ("cnn-6", DataConfig("mnist", limit=64), 1, True),
        ("cnn-6", DataConfig("folder:photographs"), 100, True),
        ("capsnet", DataConfig("mnist", limit=64), 1, False),
    ],
)
def test_short_runs_have_a_revision(name: str, data: DataConfig, epochs: int, raised: bool) -> None:
    """So that lines and folders from before are told from those of today; of the user's own data nobody knows."""
    config = Config(model=ModelConfig(name), data=data, epochs=epochs)
    assert ("phase evaluation" in revisions_of(config)) == raised
    assert "phase evaluation" not in revisions_of(config, trained=False)


@pytest.mark.slow
def test_processes_take_the_statistics_of_the_first(tmp_path: Path) -> None:
    """Of joint batches, as one process would see them: the saved ones are those, and all evaluate with them."""
    config = short(tmp_path, processes=2)
    result = fit(config)
    model = network()
    model.load_state_dict(load_file(result.folder / "last" / "model.safetensors"))
    alone = load_data(config.data).training(config.data, 64, config.seed)
    expected = measure_statistics(build_fabric(replace(config, processes=1)), model, alone, 20)
    best = buffers(result.folder, "best")
    assert result.selected_epoch == 2
    for name, value in statistics(expected).items():
        torch.testing.assert_close(best[name], value, rtol=1e-4, atol=1e-5)
