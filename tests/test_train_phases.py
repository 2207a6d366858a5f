"""The phases of a step: who is updated by what, in one process and in two."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from tiny import tiny_config

from torchcaps.config import CoefficientConfig, Config, ModelConfig, OptimiserConfig, ScheduleConfig
from torchcaps.data import load_data
from torchcaps.losses import multi_hot
from torchcaps.models import Model, create_model
from torchcaps.train import InUse, build_phases, evaluate, load_run
from torchcaps.train.loop import Trainer
from torchcaps.train.phases import Batch, LossModule, step_apart, step_phases, step_weights
from torchcaps.train.processes import build_fabric, launch

TWO_STEPS = CoefficientConfig(lr=0.1, steps=2)


def draw_batch(size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(10, (size,), generator=generator)
    return Batch(torch.rand(size, 1, 8, 8, generator=generator), labels, multi_hot(labels, 10))


def build(tmp_path: Path, coefficients: CoefficientConfig = TWO_STEPS, **options) -> tuple[Model, Config]:
    torch.manual_seed(0)
    config = tiny_config(tmp_path, options, coefficients=coefficients)
    return create_model("tiny", image_size=8, **options), config


def test_phases_share_no_parameter_and_leave_none_out(tmp_path: Path) -> None:
    model, config = build(tmp_path)
    weights, coefficients = build_phases(model, config)
    assert (weights.name, coefficients.name, coefficients.steps) == ("weights", "coefficients", 2)
    found = [id(parameter) for phase in (weights, coefficients) for parameter in phase.parameters]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters())
    assert coefficients.parameters == model.coefficients()
    plain, config = build(tmp_path, coefficient=False)
    assert [phase.name for phase in build_phases(plain, config)] == ["weights"]


def test_coefficients_are_refused_in_fp16(tmp_path: Path) -> None:
    """Whose small gradients would be 0 without a scale, and others infinite."""
    model, config = build(tmp_path)
    with pytest.raises(ValueError, match=r"precision is 'fp16', but tiny learns coefficients .*: take bf16 or fp32"):
        build_phases(model, replace(config, precision="fp16"))
    plain, config = build(tmp_path, coefficient=False)
    assert build_phases(plain, replace(config, precision="fp16"))


def test_weights_step_changes_no_coefficient(tmp_path: Path) -> None:
    model, config = build(tmp_path)
    phase = build_phases(model, config)[0]
    fabric = build_fabric(config)
    wrapped, optimizer = fabric.setup(LossModule(model, phase), phase.optimizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step_weights(fabric, wrapped, optimizer, draw_batch(), clip=None)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"conv.weight", "conv.bias", "head.weight", "head.bias"}


def test_coefficients_ascend_their_objective_alone(tmp_path: Path) -> None:
    model, config = build(tmp_path)
    phase = build_phases(model, config)[1]
    batch = draw_batch()
    expected = model.coefficients()[0].detach().clone()
    with torch.no_grad():
        activities = model(batch.images).scores / expected
    for _ in range(2):  # the gradient of mean(sum scale * activity * target) - mean(scale^2), by hand
        expected = expected + 0.1 * ((activities * batch.targets).mean(0) - 2 * expected / 10)
    weights = {name: value.clone() for name, value in model.state_dict().items() if name != "scale"}
    step_apart(build_fabric(config), model, phase, batch, clip=None)
    torch.testing.assert_close(model.coefficients()[0].detach(), expected)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("phase", ["weights", "coefficients", "reused"])
def test_clip_bounds_the_gradient_of_each_phase(tmp_path: Path, phase: str) -> None:
    model, config = build(tmp_path)
    config = replace(
        config,
        optimiser=OptimiserConfig("sgd", lr=1.0, momentum=0.0),
        coefficients=CoefficientConfig(1.0, reuse_votes=phase == "reused"),
    )
    weights, coefficients = build_phases(model, config)
    chosen = weights if phase == "weights" else coefficients
    before = [parameter.detach().clone() for parameter in chosen.parameters]
    fabric = build_fabric(config)
    if phase == "weights":
        wrapped, optimizer = fabric.setup(LossModule(model, weights), weights.optimizer)
        step_weights(fabric, wrapped, optimizer, draw_batch(), clip=1e-3)
    elif phase == "reused":
        wrapped, optimizer = fabric.setup(LossModule(model, weights, coefficients), weights.optimizer)
        step_weights(fabric, wrapped, optimizer, draw_batch(), clip=1e-3, beside=[coefficients])
    else:
        step_apart(fabric, model, coefficients, draw_batch(), clip=1e-3)
    moved = [new.detach() - old for new, old in zip(chosen.parameters, before, strict=True)]
    assert torch.cat([each.flatten() for each in moved]).norm().item() == pytest.approx(1e-3, rel=1e-3)


def all_phases(model: Model, config: Config, seen: list | None = None) -> dict[str, torch.Tensor]:
    """What one step of all phases makes of a model; `seen` notes each forward pass."""
    phases, fabric = build_phases(model, config), build_fabric(config)
    wrapped, optimizer = fabric.setup(LossModule(model, *phases), phases[0].optimizer)
    if seen is not None:
        model.register_forward_hook(lambda *_: seen.append(1))
    step_phases(fabric, model, wrapped, optimizer, phases, draw_batch(), config.clip)
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_reused_votes_are_those_before_the_weight_step(tmp_path: Path) -> None:
    once = CoefficientConfig(lr=0.1, reuse_votes=True)
    model, config = build(tmp_path, coefficients=once)
    expected, start = copy.deepcopy(model), model.coefficients()[0].detach().clone()
    step_apart(build_fabric(config), expected, build_phases(expected, config)[1], draw_batch(), None)
    plain, config_apart = build(tmp_path, coefficients=CoefficientConfig(lr=0.1))
    seen: list[int] = []
    reused, apart = all_phases(model, config, seen), all_phases(plain, config_apart)
    assert len(seen) == 1
    torch.testing.assert_close(reused.pop("scale"), expected.coefficients()[0].detach())
    assert not torch.equal(expected.coefficients()[0], start) and not torch.equal(apart.pop("scale"), start)
    assert all(torch.equal(value, apart[name]) for name, value in reused.items())


def test_several_weight_steps_are_that_many_steps_and_then_the_coefficients(tmp_path: Path) -> None:
    model, config = build(tmp_path, coefficients=CoefficientConfig(lr=0.1, steps=3, weight_steps=2))
    expected = copy.deepcopy(model)
    seen: list[int] = []
    ended = all_phases(model, config, seen)
    assert len(seen) == 5
    weights, coefficients = build_phases(expected, config)
    fabric = build_fabric(config)
    wrapped, optimizer = fabric.setup(LossModule(expected, weights), weights.optimizer)
    for _ in range(2):
        step_weights(fabric, wrapped, optimizer, draw_batch(), None)
    step_apart(fabric, expected, coefficients, draw_batch(), None)
    assert all(torch.equal(value, ended[name]) for name, value in expected.state_dict().items())


def test_more_weight_steps_are_for_networks_with_coefficients(tmp_path: Path) -> None:
    model, config = build(tmp_path, coefficient=False, coefficients=CoefficientConfig(weight_steps=5))
    assert [phase.steps for phase in build_phases(model, config)] == [1]


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        (ScheduleConfig(), [1.0] * 4),
        (ScheduleConfig("exponential", gamma=0.5, step_size=2), [1.0, 1.0, 0.5, 0.5]),
        (ScheduleConfig("triangular2", step_size=4), [1.0, 0.75, 0.5, 0.25]),
        (ScheduleConfig("one-cycle"), [0.04, 0.52, 1.0, 0.950484]),
    ],
    ids=lambda value: value.name if isinstance(value, ScheduleConfig) else "",
)
def test_coefficients_follow_the_schedule_of_the_weights(
    tmp_path: Path, schedule: ScheduleConfig, shares: list[float]
) -> None:
    """Batch by batch, however many steps of either kind each takes."""
    routing = CoefficientConfig(lr=0.5, steps=3, weight_steps=2)
    trainer = Trainer(*of_run(tmp_path, schedule=schedule, coefficients=routing), resume=False)
    seen: list[float] = []
    ascent = trainer.learner.phases[1].optimizer
    ascent.register_step_pre_hook(lambda *_: seen.append(ascent.param_groups[0]["lr"]))
    for batch in [*trainer.batches.epoch(0)][:4]:
        trainer.step(*batch)
    assert seen == pytest.approx([0.5 * share for share in shares for _ in range(3)])
    assert schedule.name != "constant" or seen == [0.5] * 12


def test_each_step_of_each_process_draws_numbers_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, seeds = Trainer(*of_run(tmp_path), resume=False), []
    plain, batch = torch.manual_seed, next(trainer.batches.epoch(0))
    monkeypatch.setattr(torch, "manual_seed", lambda seed: seeds.append(seed) or plain(seed))
    for rank in range(2):
        monkeypatch.setattr(type(trainer.fabric), "global_rank", property(lambda fabric, rank=rank: rank))
        for epoch, step in ((0, 0), (0, 1), (1, 0), (0, 0)):
            trainer.learner.step(*batch, epoch, step)
    first, other = seeds[:4], seeds[4:]
    assert len({*first, *other}) == 6 and first[0] == first[3] and other[0] == other[3]


def test_coefficients_rest_where_the_rate_of_the_weights_has_fallen_to_nothing(tmp_path: Path) -> None:
    trainer = Trainer(*of_run(tmp_path, schedule=ScheduleConfig("step", (1,), gamma=0.0)), resume=False)
    (scale,) = trainer.model.coefficients()
    kept = []
    for epoch in range(2):
        for batch in trainer.batches.epoch(epoch):
            trainer.step(*batch)
        kept.append(scale.detach().clone())
    assert (kept[0] != 1).all() and torch.equal(kept[0], kept[1])


def of_run(out: Path, **changes: Any) -> tuple[Fabric, Config]:
    config = tiny_config(out, **changes)
    return build_fabric(config), config


def two_steps(fabric: Fabric, config: Config) -> tuple[dict, dict]:
    """The weights after two steps, and the result of a whole run; called in each process."""
    trainer = Trainer(fabric, config, resume=False)
    steps = trainer.batches.epoch(0)
    for _ in range(2):
        trainer.step(*next(steps))
    weights = {name: value.tolist() for name, value in trainer.model.state_dict().items()}
    noisy = replace(config, checkpoint_every=0.0, model=ModelConfig("tiny", {"norm": True, "dropout": 0.2}))
    noisy = replace(noisy, test_curve=True)
    return weights, Trainer(fabric, noisy, resume=False).run()._asdict()


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    config = tiny_config(
        tmp_path,
        optimiser=OptimiserConfig("sgd", lr=0.5),
        coefficients=CoefficientConfig(lr=0.5, steps=2),
        clip=0.1,
        batch_size=64,
    )
    start = create_model("tiny", image_size=8).state_dict()["scale"].tolist()
    one, _ = two_steps(build_fabric(config), config)
    config = replace(config, processes=2)
    two, result = launch(build_fabric(config), partial(two_steps, config=config))
    for name, value in one.items():
        torch.testing.assert_close(torch.tensor(two[name]), torch.tensor(value), rtol=0, atol=1e-6, msg=name)
    assert one["scale"] != start
    model, config = load_run(result["folder"])
    fabric = build_fabric(replace(config, processes=1))
    data = load_data(config.data)
    for split in ("test", "validation"):
        score = evaluate(fabric, model, data.evaluation(split, 64), config.loss, 10)
        assert score.accuracy == result[f"{split}_accuracy"]
    assert result["test_images"] == 360
    last = json.loads((result["folder"] / "metrics.jsonl").read_text().splitlines()[result["selected_epoch"] - 1])
    assert last["test_accuracy"] == result["test_accuracy"]


def fail(fabric: Fabric) -> None:
    raise ValueError("shards are of unequal size")


def fail_in_use(fabric: Fabric) -> None:
    raise InUse("the run is being trained")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "kind", "said"),
    [(fail, ValueError, "shards are of unequal size"), (fail_in_use, InUse, "the run is being trained")],
)
def test_an_error_in_a_process_reaches_the_caller(
    tmp_path: Path, function: Callable[[Fabric], None], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=f"^{said}$") as caught:
        launch(build_fabric(tiny_config(tmp_path, processes=2)), function)
    assert type(caught.value) is kind


def test_the_proximal_penalty_shrinks_coefficients_to_zero_in_training(tmp_path: Path) -> None:
    """A penalty whose step exceeds every coefficient leaves exact zeros; a subgradient would pass through them."""
    options = {"routing": "discriminative", "channels": 8, "primary": 2, "kernel": 3}
    model = create_model("capsnet", image_size=12, **options)
    routing = model.get_submodule("stack.layers.0.routing")
    for name, value in (("norm", "l1"), ("proximal", True), ("penalty_weight", 300.0 * 256)):
        assert hasattr(routing, name)
        setattr(routing, name, value)
    phase = build_phases(model, tiny_config(tmp_path))[1]
    batch = Batch(torch.rand(4, 1, 12, 12), torch.arange(4), torch.eye(10)[:4])
    step_apart(build_fabric(tiny_config(tmp_path)), model, phase, batch, None)
    assert (model.coefficients()[0] == 0).any()
