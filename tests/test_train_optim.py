"""Optimisers and schedules against the formulas they are named after."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CyclicLR

from torchcaps.config import Config, LossConfig, OptimiserConfig, ScheduleConfig
from torchcaps.models import create_model
from torchcaps.train import build_phases
from torchcaps.train.check import check_config
from torchcaps.train.optim import build_optimiser, build_schedule, list_gains, triangular2

LR, EPOCHS, EPOCH_STEPS = 0.02, 6, 7
STEPS = EPOCHS * EPOCH_STEPS


def rise(step: float) -> float:
    """One cycle: a cosine from lr / 25 to lr over 30 % of the run, then a cosine to lr / 250,000."""
    low, last, peak = LR / 25, LR / 25e4, 0.3 * STEPS - 1
    if step <= peak:
        return low + (LR - low) * (1 - math.cos(math.pi * step / peak)) / 2
    return last + (LR - last) * (1 + math.cos(math.pi * (step - peak) / (STEPS - 1 - peak))) / 2


CASES = {
    "constant": (ScheduleConfig("constant"), lambda t: LR),
    "step": (
        ScheduleConfig("step", milestones=(2, 4), gamma=0.5),
        lambda t: LR * 0.5 ** ((t >= 2 * EPOCH_STEPS) + (t >= 4 * EPOCH_STEPS)),
    ),
    "cosine": (
        ScheduleConfig("cosine", lr_min=0.001),
        lambda t: 0.001 + (LR - 0.001) * (1 + math.cos(math.pi * t / STEPS)) / 2,
    ),
    "one-cycle": (ScheduleConfig("one-cycle", warmup=0.3), rise),
    "triangular2": (
        ScheduleConfig("triangular2", step_size=5, lr_min=0.002),
        lambda t: 0.002 + (LR - 0.002) * abs((t % 10) / 5 - 1) / 2 ** ((t + 5) // 10),
    ),
    "triangular2, dips": (
        ScheduleConfig("triangular2", step_size=5, lr_min=0.002, halves="dips"),
        lambda t: LR - (LR - 0.002) * (1 - abs((t % 10) / 5 - 1)) / 2 ** (t // 10),
    ),
    "exponential": (ScheduleConfig("exponential", gamma=0.9, step_size=4), lambda t: LR * 0.9 ** (t // 4)),
    "exponential, continuous": (
        ScheduleConfig("exponential", gamma=0.9, step_size=4, continuous=True),
        lambda t: LR * 0.9 ** (t / 4),
    ),
    "exponential, floor": (
        ScheduleConfig("exponential", gamma=0.5, step_size=4, lr_min=0.002),
        lambda t: max(LR * 0.5 ** (t // 4), 0.002),
    ),
    "exponential, continuous floor": (
        ScheduleConfig("exponential", gamma=0.5, step_size=4, lr_min=0.002, continuous=True),
        lambda t: max(LR * 0.5 ** (t / 4), 0.002),
    ),
}


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop"])
def test_eps_is_that_of_the_config(name: str) -> None:
    assert build_optimiser(parameters(), OptimiserConfig(name, eps=1e-3)).param_groups[0]["eps"] == 1e-3


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3))]


@pytest.mark.parametrize("name", CASES)
def test_schedule_follows_its_formula_and_survives_a_checkpoint(name: str) -> None:
    config, formula = CASES[name]
    optimizer = build_optimiser(parameters(), OptimiserConfig("sgd", lr=LR))
    schedule = build_schedule(optimizer, config, EPOCH_STEPS, EPOCHS)
    for step in range(STEPS):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(formula(step), rel=1e-9), step
        if step == 17:
            file = io.BytesIO()
            torch.save([optimizer.state_dict(), schedule.state_dict()], file)
            file.seek(0)
            optimizer = build_optimiser(parameters(), OptimiserConfig("sgd", lr=LR))
            schedule = build_schedule(optimizer, config, EPOCH_STEPS, EPOCHS)
            for each, state in zip((optimizer, schedule), torch.load(file, weights_only=True), strict=True):
                each.load_state_dict(state)
        optimizer.step()
        schedule.step()


def test_every_schedule_of_the_config_has_a_formula_here() -> None:
    assert {name.partition(",")[0] for name in CASES} == set(get_args(get_type_hints(ScheduleConfig)["name"]))


def cycle(base: float, other: float) -> list[float]:
    """Forty steps of torch's triangular2 that begin at `base`, with half cycles of four."""
    optimizer = torch.optim.SGD(parameters(), lr=1.0)
    cyclic = CyclicLR(optimizer, base, other, step_size_up=4, mode="triangular2", cycle_momentum=False)
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cyclic.step()
    return rates


def test_triangular2_is_torchs_entered_at_its_first_peak() -> None:
    assert [triangular2(step, 4, 0.1) for step in range(36)] == pytest.approx(cycle(0.1, 1.0)[4:])
    assert triangular2(0, 4, 0.1) == 1.0


def test_triangular2_by_dips_is_torchs_with_the_largest_rate_as_its_base() -> None:
    assert [triangular2(step, 4, 0.1, "dips") for step in range(40)] == pytest.approx(cycle(1.0, 0.1))


@pytest.mark.parametrize(
    ("name", "kind", "fields"),
    [
        ("adam", torch.optim.Adam, {}),
        ("adamw", torch.optim.AdamW, {}),
        ("sgd", torch.optim.SGD, {"momentum": 0.7}),
        ("rmsprop", torch.optim.RMSprop, {"momentum": 0.7}),
    ],
)
def test_optimiser_takes_its_values_from_the_config(name, kind, fields) -> None:
    optimizer = build_optimiser(parameters(), OptimiserConfig(name, lr=0.3, weight_decay=0.01, momentum=0.7))
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert {"lr": 0.3, "weight_decay": 0.01, **fields}.items() <= group.items()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ScheduleConfig("exponential", step_size=0), "step_size is 0"),
        (ScheduleConfig("one-cycle", warmup=1.0), "warmup is 1.0"),
        (ScheduleConfig("cosine", lr_min=1.0), "lr_min is 1.0"),
    ],
)
def test_schedule_names_the_value_that_is_wrong(config: ScheduleConfig, message: str) -> None:
    optimizer = build_optimiser(parameters(), OptimiserConfig("sgd", lr=LR))
    with pytest.raises(ValueError, match=message):
        build_schedule(optimizer, config, EPOCH_STEPS, EPOCHS)


KERNELS = OptimiserConfig("sgd", lr=1.0, momentum=0.0, weight_decay=0.25, decay="kernels")


def decayed(model: nn.Module, optimizer: torch.optim.Optimizer) -> set[str]:
    """Names of the parameters that a step without gradients makes smaller, by the quarter that the config says."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
            parameter.grad = torch.zeros_like(parameter)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer.step()
    found = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    for name in found:
        torch.testing.assert_close(model.get_parameter(name), 0.75 * before[name], msg=name)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(before)
    return found


def test_only_kernels_decay_where_the_config_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3), nn.LayerNorm((2, 3)))
    assert decayed(model, build_optimiser(model.parameters(), KERNELS, list_gains(model))) == {"0.weight", "3.weight"}


@pytest.mark.parametrize("each", ["element", "child", "pair"])
@pytest.mark.parametrize("routing", ["fm", "dynamic"])
def test_gains_of_any_shape_are_no_kernels(each: str, routing: str) -> None:
    """Those of a batch norm of votes by child and parent have three dimensions."""
    small = {"blocks": (1, 1), "width": 2, "primary": 2, "pose": 4, "capsules": ()}
    model = create_model("fm-resnet-affnist", image_size=8, batch_norm=each, routing=routing, decoder=True, **small)
    (phase,) = build_phases(model, Config(optimiser=KERNELS, loss=LossConfig("margin")))
    found = decayed(model, phase.optimizer)
    assert any(value.ndim == 3 for value in list_gains(model)) == (each != "element")
    assert found == {name for name, value in model.named_parameters() if value.ndim > 1 and "norm" not in name}
    assert {"stack.layers.0.transform.weight", "primary.conv.weight"} <= found


def test_nesterov_is_of_sgd_with_momentum() -> None:
    config = OptimiserConfig("sgd", lr=LR, nesterov=True)
    assert build_optimiser(parameters(), config).param_groups[0]["nesterov"] is True
    check_config(Config(optimiser=config))
    for wrong in (replace(config, name="adam"), replace(config, momentum=0.0)):
        with pytest.raises(ValueError, match=r"optimiser\.nesterov is of SGD with momentum"):
            check_config(Config(optimiser=wrong))


@pytest.mark.parametrize("loss", [LossConfig("margin", smoothing=0.1), LossConfig("cross-entropy", smoothing=1.0)])
def test_smoothing_is_a_share_and_of_cross_entropies(loss: LossConfig) -> None:
    check_config(Config(loss=LossConfig("binary-cross-entropy", smoothing=0.1)))
    with pytest.raises(ValueError, match=r"loss\.smoothing is"):
        check_config(Config(loss=loss))
