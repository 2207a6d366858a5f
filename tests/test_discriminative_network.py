"""The network of Yang, Li and Yu 2021: its sizes, and its two phases in training, in one process and in two."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from tiny import tiny_config

from torchcaps import create_model
from torchcaps.config import CoefficientConfig, Config, ModelConfig, ScheduleConfig
from torchcaps.models import Model
from torchcaps.revisions import revisions_of
from torchcaps.train import build_phases, fit, loop
from torchcaps.train.loop import Trainer
from torchcaps.train.phases import Batch, step_apart
from torchcaps.train.processes import build_fabric, launch

NARROW = {"channels": 4, "primary": 2, "kernel": 3}


@pytest.mark.parametrize(
    ("options", "channels", "size", "parameters", "coefficients"),
    [
        ({"decoder": True}, 1, 28, 8_227_088, 11_520),  # MNIST and Fashion-MNIST: CapsNet's 8,215,568 and coefficients
        ({}, 1, 28, 6_815_744, 11_520),  # without FC
        ({"primary": 64, "leak": 0.01}, 3, 32, 15_963_648, 40_960),  # CIFAR-10
        ({}, 1, 36, 9_457_664, 32_000),  # MultiMNIST
    ],
)
def test_parameters_of_table_1(options: dict, channels: int, size: int, parameters: int, coefficients: int) -> None:
    with torch.device("meta"):
        model = create_model("discriminative-capsnet", in_channels=channels, image_size=size, **options)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in model.coefficients()) == coefficients


def test_the_leak_is_that_of_the_first_activation() -> None:
    models = [create_model("discriminative-capsnet", image_size=8, **NARROW, leak=leak) for leak in (0.0, 0.2)]
    for model, slope in zip(models, (0.0, 0.2), strict=True):
        activation = model.get_submodule("activation")
        assert torch.equal(activation(torch.tensor([-1.0, 2.0])), torch.tensor([-slope, 2.0]))


def network(**options) -> Model:
    torch.manual_seed(0)
    return create_model("discriminative-capsnet", image_size=8, **NARROW, **options)


def batch(size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(size)
    return Batch(torch.rand(size, 1, 8, 8, generator=generator), labels, torch.eye(10)[labels])


def config_of(out: Path, **changes) -> Config:
    model = ModelConfig("discriminative-capsnet", {**NARROW, "initial": 1.0, "hidden": (5,), "penalty_weight": 0.0})
    return tiny_config(out, **{"model": model, "coefficients": CoefficientConfig(lr=1.0, steps=2)} | changes)


def ascend(out: Path, model: Model, precision: str = "fp32") -> list[torch.Tensor]:
    """The coefficients of each layer after the second phase on one batch."""
    config = config_of(out, precision=precision)
    step_apart(build_fabric(config), model, build_phases(model, config)[1], batch(), clip=None)
    return [coefficient.detach().clone() for coefficient in model.coefficients()]


def test_every_layer_has_coefficients_that_move_and_weights_that_rest(tmp_path: Path) -> None:
    model = network(hidden=(6, 5), initial=2.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = ascend(tmp_path, model)
    assert [tuple(each.shape) for each in after] == [(8, 6), (6, 5), (5, 10)]
    assert all((each != 2.0).any() for each in after)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"stack.layers.{level}.routing.coefficient" for level in range(3)}


def test_mixed_precision_moves_float32_coefficients_alike(tmp_path: Path) -> None:
    (exact,), (mixed,) = (ascend(tmp_path, network(initial=1.0), precision) for precision in ("fp32", "bf16"))
    assert mixed.dtype == torch.float32
    assert (exact - 1).abs().max() > 1e-3
    torch.testing.assert_close(mixed - 1, exact - 1, rtol=0.1, atol=0.02 * (exact - 1).abs().max().item())


def coefficients_after(fabric: Fabric, config: Config) -> list:
    """What two steps of both phases make of the coefficients; called in each process."""
    trainer = Trainer(fabric, config, resume=False)
    steps = trainer.batches.epoch(0)
    for _ in range(2):
        trainer.step(*next(steps))
    return [coefficient.tolist() for coefficient in trainer.model.coefficients()]


@pytest.mark.slow
@pytest.mark.parametrize("coefficients", [CoefficientConfig(lr=1.0, steps=2), CoefficientConfig(1.0, reuse_votes=True)])
def test_two_processes_give_the_coefficients_of_one_on_the_joint_batch(
    tmp_path: Path, coefficients: CoefficientConfig
) -> None:
    config = config_of(tmp_path, batch_size=64, coefficients=coefficients)
    config = replace(config, model=replace(config.model, options=config.model.options | {"penalty_weight": 2.0}))
    one = coefficients_after(build_fabric(config), config)
    config = replace(config, processes=2)
    two = launch(build_fabric(config), partial(coefficients_after, config=config))
    for values, expected in zip(two, one, strict=True):
        torch.testing.assert_close(torch.tensor(values), torch.tensor(expected), rtol=0, atol=1e-6)
        assert (torch.tensor(values) - 1.0).abs().max() > 1e-3  # from where they start


def test_a_resumed_run_ends_as_if_it_had_never_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path / "cut", checkpoint_every=0.0, schedule=ScheduleConfig("one-cycle"))
    step = Trainer.step

    def cut(trainer: Trainer, *batch: torch.Tensor) -> torch.Tensor:
        if trainer.position.step == 3:
            raise KeyboardInterrupt
        return step(trainer, *batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Trainer, "step", cut)
        fit(config)
    ended = [fit(replace(config, out=tmp_path / "whole")), fit(config, resume=True)]
    whole, resumed = (load_file(each.folder / "last" / "model.safetensors") for each in ended)
    assert whole.keys() == resumed.keys() and all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("name", "options", "schedule", "raised"),
    [
        ("discriminative-capsnet", {}, "constant", {"routing discriminative": 2}),
        ("discriminative-capsnet", {"penalty_weight": 0.0}, "constant", {}),
        ("small-resnet.discriminative", {}, "one-cycle", {"phase coefficients": 2, "routing discriminative": 2}),
        ("capsnet", {"routing": "discriminative", "penalty_weight": 0.0}, "one-cycle", {"phase coefficients": 2}),
        ("discriminative-capsnet", {"fixed": True}, "one-cycle", {}),
        ("capsnet", {}, "one-cycle", {}),
    ],
)
def test_revisions_are_of_learnt_coefficients_alone(name: str, options: dict, schedule: str, raised: dict) -> None:
    """Lines of the constant control stay what they were."""
    config = Config(model=ModelConfig(name, options), schedule=ScheduleConfig(schedule))  # pyright: ignore[reportArgumentType]
    assert revisions_of(config) == raised
    assert revisions_of(config, trained=False) == {}


def test_training_names_a_collapse(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A step a thousand times too large."""
    model = ModelConfig("discriminative-capsnet", {**NARROW, "initial": 0.1})
    fit(tiny_config(tmp_path, model=model, coefficients=CoefficientConfig(lr=1.0), batch_size=64, epochs=5))
    assert "collapse of stack.layers.0.routing: the coefficients of parents" in caplog.text
