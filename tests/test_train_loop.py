"""Whole runs of the tiny model on real digits."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_config

from torchcaps.config import Config, DataConfig, LossConfig, ModelConfig, OptimiserConfig, ScheduleConfig
from torchcaps.data import load_data
from torchcaps.models import Model
from torchcaps.tables.records import describe_run
from torchcaps.train import evaluate, fit, learner, load_run, loop, position
from torchcaps.train.devices import choose_compile, choose_device, choose_precision, is_depthwise
from torchcaps.train.display import Display
from torchcaps.train.position import Clock
from torchcaps.train.processes import build_fabric
from torchcaps.train.run import RunFolder

EVERYTHING = {"norm": True, "dropout": 0.2}  # all that a checkpoint must bring back: buffers, random numbers
CLOCK = ("seconds", "images_per_second")
CLOCKS = {"seconds": 0, "cpu_seconds": 0}


def history(folder: str | Path, without: tuple[str, ...] = ()) -> list[dict]:
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in without} for line in lines]


def everything(out: Path, **changes) -> Config:
    return tiny_config(
        out, EVERYTHING, schedule=ScheduleConfig("one-cycle"), clip=1.0, checkpoint_every=0.0, epochs=3, **changes
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of `everything`."""
    return Path(fit(everything(tmp_path_factory.mktemp("whole"))).folder)


def test_run_writes_what_it_says(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} == {
        ".lock", "config.json", "environment.json", "model.json", "metrics.jsonl", "result.json", "last", "best",
    }  # fmt: skip
    config = RunFolder(whole).read_config()
    assert config == everything(whole.parent)
    environment = RunFolder(whole).read("environment.json")
    assert environment["precision"] == "32-true"
    assert environment["torch"] == torch.__version__.partition("+")[0]
    lines = history(whole)
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 5), (2, 10), (3, 15)]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert all(line[key] > 0 for line in lines for key in CLOCK)
    result = RunFolder(whole).read("result.json")
    best = max(lines, key=lambda line: (line["validation_accuracy"], -line["validation_loss"]))
    assert (result["validation_accuracy"], result["selected_epoch"]) == (best["validation_accuracy"], best["epoch"])
    assert result["test_accuracy"] == (360 - result["test_errors"]) / 360
    assert result["seconds"] == pytest.approx(sum(line["seconds"] for line in lines))
    assert 0 < result["cpu_seconds"] < 1.1 * torch.get_num_threads() * result["seconds"] + 1


def test_the_test_split_is_measured_after_each_epoch_on_request_and_changes_nothing(
    whole: Path, tmp_path: Path
) -> None:
    folder = Path(fit(everything(tmp_path, test_curve=True)).folder)
    added = ("test_loss", "test_accuracy")
    assert history(folder, CLOCK + added) == history(whole, CLOCK)
    for checkpoint in ("last", "best"):
        assert weights(folder, checkpoint) == weights(whole, checkpoint)
    lines, result = history(folder), RunFolder(folder).read("result.json")
    assert result["selected_epoch"] == RunFolder(whole).read("result.json")["selected_epoch"]
    assert lines[result["selected_epoch"] - 1]["test_accuracy"] == result["test_accuracy"]
    curve = describe_run(folder)["curve"]
    assert curve["test_accuracy"] == [round(line["test_accuracy"], 5) for line in lines]
    assert "test_accuracy" not in describe_run(whole)["curve"] and not any(key in history(whole)[0] for key in added)
    assert describe_run(folder)["config_hash"] == describe_run(whole)["config_hash"]


def test_the_time_that_the_curve_of_the_test_split_takes_is_none_of_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed, evaluate_plainly = [0.0], loop.Trainer.evaluate
    monkeypatch.setattr(position.time, "monotonic", lambda: passed[0])

    def evaluated(trainer: loop.Trainer, split: Any, model: Any) -> Any:
        passed[0] += {"validation": 2.0, "test": 1000.0}[split]
        return evaluate_plainly(trainer, split, model)

    monkeypatch.setattr(loop.Trainer, "evaluate", evaluated)
    result = fit(tiny_config(tmp_path, test_curve=True, epochs=2))
    assert [line["seconds"] for line in history(Path(result.folder))] == [2.0, 2.0] and result.seconds == 4.0


def test_a_run_may_begin_to_record_the_test_split_where_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_epoch = loop.Trainer.end_epoch

    def cut(trainer: loop.Trainer, display: Display) -> None:
        if trainer.position.epoch == 1:
            raise KeyboardInterrupt
        end_epoch(trainer, display)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Trainer, "end_epoch", cut)
        fit(tiny_config(tmp_path))
    folder = Path(fit(tiny_config(tmp_path, test_curve=True), resume=True).folder)
    values = describe_run(folder)["curve"]["test_accuracy"]
    assert values[0] is None and values[1] == round(RunFolder(folder).read("result.json")["test_accuracy"], 5)


def test_run_is_loaded_and_measured_again(whole: Path) -> None:
    model, config = load_run(whole)
    assert not model.training
    data = load_data(config.data)
    fabric = build_fabric(config)
    for split, key in (("test", "test_accuracy"), ("validation", "validation_accuracy")):
        score = evaluate(fabric, model, data.evaluation(split, 100), config.loss, 10)
        assert score.accuracy == RunFolder(whole).read("result.json")[key]


def test_loss_curve_is_a_function_of_the_config(whole: Path, tmp_path: Path) -> None:
    again = fit(everything(tmp_path))
    assert history(again.folder, CLOCK) == history(whole, CLOCK)
    assert weights(again.folder) == weights(whole)
    other = fit(everything(tmp_path, seed=1))
    assert history(other.folder, CLOCK) != history(whole, CLOCK)


def weights(folder: str | Path, checkpoint: str = "last") -> dict[str, bytes]:
    return as_bytes(load_file(Path(folder) / checkpoint / "model.safetensors"))


def as_bytes(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in tensors.items()}


@pytest.mark.parametrize("steps", [0, 3, 5, 12])
def test_resumed_run_ends_as_if_it_had_never_stopped(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Cut in the step after `steps`: before any checkpoint, within an epoch, at its end, within the last one."""
    config, step = everything(tmp_path), loop.Trainer.step

    def cut(trainer: loop.Trainer, *batch: torch.Tensor) -> torch.Tensor:
        if trainer.position.epoch * 5 + trainer.position.step == steps:
            raise KeyboardInterrupt
        return step(trainer, *batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Trainer, "step", cut)
        fit(config)
    done = []
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "step", lambda trainer, *batch: done.append(1) or step(trainer, *batch))
        result = fit(config, resume=True)
    assert len(done) == 15 - steps
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-0"]
    assert history(result.folder, CLOCK) == history(whole, CLOCK)
    for checkpoint in ("last", "best"):
        assert weights(result.folder, checkpoint) == weights(whole, checkpoint)
    ended, expected = (RunFolder(folder).read("result.json") for folder in (tmp_path / "tiny-0", whole))
    assert ended | CLOCKS == expected | CLOCKS


def test_run_cut_between_its_two_checkpoints_is_resumed(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """best/ and metrics.jsonl are of the second epoch, last/ is of a step within it."""
    config, save = everything(tmp_path), loop.Trainer.save

    def cut(trainer: loop.Trainer) -> None:
        if trainer.position.epoch == 2:
            raise KeyboardInterrupt
        save(trainer)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Trainer, "save", cut)
        fit(config)
    result = fit(config, resume=True)
    assert history(result.folder, CLOCK) == history(whole, CLOCK)
    assert weights(result.folder, "best") == weights(whole, "best")


def test_finished_training_is_tested_on_resume(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = everything(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyError):
        patch.setattr(RunFolder, "write_result", lambda folder, result: {}["cut"])
        fit(config)
    result = fit(config, resume=True)
    assert result.test_errors == RunFolder(whole).read("result.json")["test_errors"]


def test_best_weights_are_kept_when_later_ones_are_worse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies, tested = iter([0.5, 0.9, 0.9, 0.1]), {}

    def score(trainer: loop.Trainer, split: str, model: Model) -> loop.Score:
        if split == "test":
            tested.update(as_bytes(model.state_dict()))
        return loop.Score(0.0, 360 - round(360 * next(accuracies, 0.0)), 360)

    monkeypatch.setattr(loop.Trainer, "evaluate", score)
    result = fit(tiny_config(tmp_path, epochs=4))
    assert (result.selected_epoch, result.validation_accuracy) == (2, 0.9)
    assert tested == weights(result.folder, "best")
    two = fit(tiny_config(tmp_path, epochs=2))
    assert weights(result.folder, "best") == weights(two.folder, "last") != weights(result.folder, "last")


def test_without_validation_the_last_epoch_is_selected(tmp_path: Path) -> None:
    result = fit(tiny_config(tmp_path, data=DataConfig("digits", validation=0.0)))
    assert (result.selected_epoch, result.validation_accuracy) == (2, None)
    assert weights(result.folder, "best") == weights(result.folder, "last")
    assert history(result.folder)[0]["validation_loss"] is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_the_run_and_names_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    step, count = learner.step_phases, iter(range(1, 100))

    def spoil(*args):
        taken = step(*args)
        return taken._replace(loss=taken.loss + value) if next(count) == 7 else taken

    monkeypatch.setattr(learner, "step_phases", spoil)
    with pytest.raises(FloatingPointError, match=rf"the loss is {value} at step 7 \(epoch 2\)"):
        fit(tiny_config(tmp_path, checkpoint_every=0.0))
    state = loop.load_state(tmp_path / "tiny-0" / "last")
    assert state["position"]["step"] == 1


def test_a_clock_that_stands_still_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows' does for some milliseconds."""
    monkeypatch.setattr(Clock, "tick", lambda clock, position: None)
    result = fit(tiny_config(tmp_path, epochs=1))
    (line,) = RunFolder(Path(result.folder)).path.joinpath("metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["images_per_second"] == 0.0 and result.seconds == 0.0


def test_auto_is_bf16_where_the_device_multiplies_in_it_natively(monkeypatch: pytest.MonkeyPatch) -> None:
    for avx512, amx in itertools.product((False, True), repeat=2):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=avx512: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=amx: has)
        assert choose_precision("auto", "cpu") == ("bf16-mixed" if avx512 or amx else "32-true")
        assert choose_precision("auto", "cpu", depthwise=True) == "32-true"
    for native in (False, True):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True, has=native: has or including_emulation
        )
        assert choose_precision("auto", "cuda") == ("bf16-mixed" if native else "32-true")
    assert choose_precision("auto", "mps") == "32-true"


def test_precision_is_that_of_the_config(tmp_path: Path) -> None:
    result = fit(tiny_config(tmp_path, precision="bf16", epochs=1))
    assert RunFolder(Path(result.folder)).read("environment.json")["precision"] == "bf16-mixed"
    assert all(
        tensor.dtype == torch.float32 for tensor in load_file(f"{result.folder}/last/model.safetensors").values()
    )
    assert [choose_precision(name, "cpu") for name in ("fp32", "fp16")] == ["32-true", "16-mixed"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"processes": 0}, "processes is 0"),
        ({"processes": 2, "batch_size": 33}, "batch_size is 33; .* multiple of processes"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"model": ModelConfig("capsnet", {"in_channels": 3})}, "model.options has in_channels, which the data say"),
        ({"batch_size": 5000}, "batch_size 5000 exceeds"),
        ({"data": DataConfig("digit")}, "'digit'.*'digits'"),
        ({"loss": LossConfig(reconstruction=0.1), "data": DataConfig(standardise="image")}, "standardise is 'image'"),
        ({"loss": LossConfig(reconstruction=0.1)}, "the model has no decoder"),
        ({"optimiser": OptimiserConfig(lr=0.1), "schedule": ScheduleConfig("cosine", lr_min=1.0)}, "lr_min is 1.0"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(tiny_config(tmp_path, **changes))


def test_unknown_options_of_the_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'depth'; the nearest is 'width'"):
        fit(tiny_config(tmp_path, {"depth": 3}))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"device 'cuda' was asked for 1 time\(s\), and this machine has 0"):
        fit(replace(tiny_config(tmp_path), device="cuda"))
    assert choose_device("auto") in ("cpu", "mps")


def test_auto_takes_float32_and_compiled_steps_for_depthwise_networks_on_a_cpu():
    assert is_depthwise(ModelConfig("mobilenetv2_035.xnidr", {"small_stem": True}))
    assert not is_depthwise(ModelConfig("resnet18.fm"))
    assert not is_depthwise(ModelConfig("encapnet-v1"))
    assert choose_precision("auto", "cpu", depthwise=True) == "32-true"
    assert choose_precision("bf16", "cpu", depthwise=True) == "bf16-mixed"
    chosen = [
        choose_compile(choice, device, deep)
        for choice, device, deep in [
            ("auto", "cpu", False),
            ("auto", "cpu", True),
            ("auto", "cuda", False),
            (False, "cuda", True),
            (True, "cpu", False),
        ]
    ]
    assert chosen == [False, True, True, False, True]
