"""Networks with feedback: what training adds, that inference does not know it, and that two processes are one."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from tiny import tiny_config
from torch import nn

from torchcaps import create_model
from torchcaps.config import LossConfig, ModelConfig
from torchcaps.encapnet import OptimalTransportUnit
from torchcaps.encapnet.sinkhorn import kl_divergence
from torchcaps.layers.gather import gather_batch
from torchcaps.losses import build_criterion, multi_hot
from torchcaps.models.encapnet.feedback import Feedback, WithFeedback, stage_shapes
from torchcaps.models.encapnet.six import AsCapsules
from torchcaps.models.encapnet.staged import StagedModel
from torchcaps.train import fit
from torchcaps.train.processes import build_fabric, launch

NARROW = {
    "encapnet-v1": {"types": 2, "lengths": (1, 1), "poses": (2, 4)},
    "encapnet-resnet": {"channels": 4, "blocks": (2, 2)},
    "cnn-6": {"channels": 2},
    "encapnet-6-master": {"types": 2, "channels": 2},
}


SINKHORN = ("cost", "eps", "iterations", "bias_fix", "through_plan", "first")


def build(name: str = "encapnet-v1", size: int | tuple[int, int] = 8, **options: Any) -> Any:
    torch.manual_seed(0)
    return create_model(name, in_channels=3, image_size=size, **NARROW[name.removesuffix("-feedback")] | options)


def images(batch: int = 5, size: int = 8) -> torch.Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NARROW)
def test_inference_does_not_know_the_feedback(name: str) -> None:
    plain, model = build(name), build(f"{name}-feedback")
    assert isinstance(model, WithFeedback) and model.deployed() is model.network
    assert type(model.network) is type(plain)
    before = plain.state_dict()
    assert list(model.network.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.network.state_dict().items())
    with torch.no_grad():
        model.train()(images())  # moves the statistics of batch norm alike in both
        plain.train()(images())
        for weight in model.units.parameters():
            weight.fill_(torch.nan)
        wanted, found = plain.eval()(images()), model.eval()(images())
    assert torch.equal(found.scores, wanted.scores) and found.aux == wanted.aux == {}
    for ours, theirs in zip(found.capsules, wanted.capsules, strict=True):
        assert torch.equal(ours.poses, theirs.poses)


def test_the_deployed_network_can_be_made_anew() -> None:
    model = build("encapnet-v1-feedback", units=2, eps=0.2)
    plain = create_model(**model.deployed().origin)
    plain.load_state_dict(model.deployed().state_dict())
    assert torch.equal(plain.eval()(images()).scores, model.eval()(images()).scores)
    assert plain.deployed() is plain


@pytest.mark.parametrize("name", NARROW)
def test_training_scores_are_those_of_the_network(name: str) -> None:
    plain, model = build(name).train(), build(f"{name}-feedback").train()
    found = model(images())
    assert torch.equal(found.scores, plain(images()).scores)
    assert found.aux["penalty"].shape == () and found.aux["penalty"].dtype == torch.float32


@pytest.mark.parametrize("units", [1, 2])
@pytest.mark.parametrize("name", ["encapnet-v1", "encapnet-resnet"])
def test_the_penalty_is_lambda_times_the_sum_of_the_units(name: str, units: int) -> None:
    model = build(f"{name}-feedback", units=units, weight=3.0).train()
    maps, total = model.network.stem(images()), 0.0
    twin = copy.deepcopy(model)
    maps = twin.network.stem(images())
    for stage, group in zip(twin.network.stages, twin.units, strict=True):
        first = stage[0](maps)
        higher = nn.Sequential(*list(stage)[1:])(first)
        assert len(group) == units
        total = total + group[0](higher, maps)
        if units == 2:
            assert group[1].generator.conv.stride == (1, 1)
            total = total + group[1](higher, first)
        maps = higher
    penalty = model(images()).aux["penalty"]
    torch.testing.assert_close(penalty, 3 * total)
    names = ("M1", "M2") if units == 1 else ("M1", "M1-skip", "M2", "M2-skip")
    assert model.penalties == names and model.network.penalties == ()
    model.zero_grad()
    penalty.backward()
    for key, weight in model.named_parameters():
        if not key.startswith("network.head"):
            assert weight.grad is not None and weight.grad.isfinite().all(), key


def test_a_unit_compares_what_it_generates_with_what_is_there() -> None:
    """In this order: the divergence of Table 3b is not symmetric."""
    given: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(made: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        given.append((made, seen))
        return made.sum() * 0

    unit = OptimalTransportUnit(8, 4, (8, 8), capsules=2, divergence=keep).eval()
    for parameter in unit.parameters():
        nn.init.uniform_(parameter)
    higher, lower = torch.rand(3, 8, 4, 4), torch.rand(3, 4, 8, 8)
    unit(higher, lower)
    ((made, seen),) = given
    torch.testing.assert_close(made, unit.critic(unit.generator(higher, unit.size)))
    torch.testing.assert_close(seen, unit.critic(lower))
    assert not torch.equal(made, seen)


def test_at_the_papers_weight_the_units_gradient_outweighs_that_of_the_classes() -> None:
    """At the start, of the narrowed network of the evidence."""
    torch.manual_seed(0)
    options = {"types": 4, "channels": 8}
    model = create_model("encapnet-6-master-aide-feedback", in_channels=3, image_size=32, **options).train()
    output, targets = model(images(16, 32)), multi_hot(torch.arange(16) % 10, 10)
    classes = build_criterion(LossConfig("margin"))(output._replace(aux={}), images(16, 32), targets)
    weights = [value for name, value in model.network.named_parameters() if not name.startswith("head")]
    norms = []
    for loss in (classes, output.aux["penalty"]):
        found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        norms.append(torch.cat([each.flatten() for each in found if each is not None]).norm())
    assert model.feedback.weight == 10 and norms[1] > 20 * norms[0]


def test_a_critic_sees_each_batch_once() -> None:
    """Each unit: the generated features and the true ones, of which all three terms are made."""
    model, calls = build("encapnet-v1-feedback", size=16, units=2).train(), []
    for group in model.units:
        for unit in group:
            unit.critic.register_forward_hook(lambda critic, inputs, output: calls.append(critic))
    model(images(size=16))
    critics = [unit.critic for group in model.units for unit in group]
    assert [calls.count(each) for each in critics] == [2] * 4


def test_the_criterion_adds_the_penalty_in_training_alone(tmp_path: Path) -> None:
    criterion = build_criterion(tiny_config(tmp_path).loss)
    model, targets = build("encapnet-v1-feedback").train(), multi_hot(torch.arange(5), 10)
    output = model(images())
    alone = criterion(output._replace(aux={}), images(), targets)
    torch.testing.assert_close(criterion(output, images(), targets), alone + output.aux["penalty"])


@pytest.mark.parametrize(
    "options",
    [
        {"divergence": "kl"},
        {"bias_fix": False},
        {"through_plan": True},
        {"extractor": False},
        {"generator": "vanilla"},
        {"cost": "l2"},
        {"groups": "capsules"},
        {"eps": 1.0, "iterations": 3, "weight": 1.0},
        {"first": "rows"},
    ],
    ids=str,
)
def test_every_setting_of_table_3(options: dict[str, Any]) -> None:
    model = build("encapnet-v1-feedback", size=16, **options)
    (unit, *_), feedback = model.units[1], model.feedback
    assert (len(unit.critic) > 0) == feedback.extractor
    assert (unit.generator.capsules is None) == (feedback.generator == "vanilla")
    if feedback.divergence == "kl":
        assert unit.divergence is kl_divergence
    else:
        keywords = {key: getattr(feedback, key) for key in SINKHORN}
        assert unit.divergence.keywords == keywords
    penalty = model.train()(images(size=16)).aux["penalty"]
    penalty.backward()
    gradients = [weight.grad for key, weight in model.named_parameters() if not key.startswith("network.head")]
    assert penalty.isfinite() and all(each is not None and each.isfinite().all() for each in gradients)
    usual = build("encapnet-v1-feedback", size=16).train()(images(size=16)).aux["penalty"]
    assert (penalty.item() == usual.item()) == feedback.through_plan  # which changes the gradient alone


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cost", ["cosine", "l2"])
@pytest.mark.parametrize(("batch", "size"), [(1, 8), (7, 8), (3, (5, 9))], ids=["one", "odd", "odd-maps"])
def test_half_precision_stays_finite_with_the_papers_eps(dtype: torch.dtype, cost: str, batch: int, size: Any) -> None:
    options = {"lengths": (1,), "poses": (2,), "units": 2, "cost": cost, "eps": 0.1, "through_plan": True}
    model = build("encapnet-v1-feedback", size, **options).train()
    height, width = (size, size) if isinstance(size, int) else size
    with torch.autocast("cpu", dtype=dtype):
        output = model(torch.rand(batch, 3, height, width))
    (output.aux["penalty"] + output.scores.float().square().sum()).backward()
    assert output.aux["penalty"].dtype == torch.float32 and output.aux["penalty"].isfinite()
    for key, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), key


def test_maps_that_shrink_to_one_number_are_compared_as_they_are() -> None:
    """Four pixels end in maps of 1x1: there is no critic there, whose single numbers would have no gradient."""
    model = build("encapnet-v1-feedback", size=2, lengths=(1, 1), weight=1.0).train()
    assert [tuple(shapes.higher[1:]) for shapes in stage_shapes(model.network)] == [(2, 2), (1, 1)]
    assert all(len(unit.critic) == 0 for group in model.units for unit in group)
    model(images(3, 2)).aux["penalty"].backward()
    weights = model.units[1][0].generator.conv.weight.grad
    assert weights.isfinite().all() and weights.abs().sum() > 0


def test_shapes_are_found_without_a_change_to_the_network() -> None:
    network = build(size=(9, 14)).train()
    before = copy.deepcopy(network.state_dict())
    shapes = stage_shapes(network)
    assert [tuple(map(tuple, each)) for each in shapes] == [
        ((2, 9, 14), (4, 9, 14), (4, 9, 14)),
        ((4, 9, 14), (8, 5, 7), (8, 5, 7)),
    ]
    assert network.training and all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_any_network_of_stages_takes_it() -> None:
    stages = [
        nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)),
        nn.Sequential(nn.Conv2d(4, 6, 1)),
    ]
    network = StagedModel(nn.Identity(), stages, nn.Sequential(nn.Flatten(), nn.LazyLinear(2)), (3, 8, 8))
    network(images())
    model = WithFeedback(network, Feedback(weight=2.0))
    model(images()).aux["penalty"].backward()
    assert model(images()).scores.shape == (5, 2)


def staged(layer: nn.Module, capsules: int | None = None) -> WithFeedback:
    return WithFeedback(
        StagedModel(nn.Identity(), [nn.Sequential(layer)], nn.Flatten(), (3, 8, 8), capsules), Feedback(weight=2.0)
    )


@pytest.mark.slow
def test_a_timm_resnet_takes_it() -> None:
    timm = pytest.importorskip("timm")
    body = timm.create_model("resnet18", num_classes=10)
    stem = nn.Sequential(body.conv1, body.bn1, body.act1, body.maxpool)
    head = nn.Sequential(body.global_pool, body.fc)
    network = StagedModel(stem, [body.layer1, body.layer2, body.layer3, body.layer4], head, (3, 64, 64))
    model = WithFeedback(network, Feedback(units=2))
    model(images(2, 64)).aux["penalty"].backward()
    assert all(weight.grad is not None for weight in body.layer1.parameters())
    torch.testing.assert_close(model.eval()(images(2, 64)).scores, body.eval()(images(2, 64)))


def joint(fabric: Fabric, counts: tuple[int, ...], path: Path) -> list:
    """Rows gathered of unequal shares; writes the penalty and its averaged gradients, batch norm frozen, to `path`."""
    torch.manual_seed(0)
    rank, world = fabric.global_rank, fabric.world_size
    gathered = gather_batch(torch.arange(5 * 2.0).reshape(5, 2)[rank * 5 // world : (rank + 1) * 5 // world])
    model = build("encapnet-v1-feedback", size=16, units=2)
    for module in model.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    start = sum(counts[:rank])
    share = images(sum(counts), 16)[start : start + counts[rank] if world > 1 else None]
    wrapped, _ = fabric.setup(model, torch.optim.SGD(model.parameters(), 0.1))
    penalty = wrapped(share).aux["penalty"]
    # DDP waits for every weight: those of the head have a gradient of zero here
    fabric.backward(penalty + sum(weight.sum() * 0 for weight in model.network.head.parameters()))
    if rank == 0:  # not returned: Fabric's queue holds no more than 64 KiB
        torch.save({"penalty": penalty.detach(), **{key: p.grad for key, p in model.named_parameters()}}, path)
    return gathered.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(4, 3), (3, 3)], ids=["unequal", "equal"])
def test_two_processes_have_the_gradients_of_one_on_the_joint_batch(tmp_path: Path, counts: tuple[int, int]) -> None:
    config, paths = tiny_config(tmp_path), (tmp_path / "one.pt", tmp_path / "two.pt")
    rows = joint(build_fabric(config), counts, paths[0])
    assert launch(build_fabric(replace(config, processes=2)), partial(joint, counts=counts, path=paths[1])) == rows
    wanted, found = (torch.load(path) for path in paths)
    assert wanted.keys() == found.keys() and any("units" in key for key in wanted)
    for key, value in wanted.items():
        scale = max(1e-6, value.abs().max().item())
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-4 * scale, msg=key)


@pytest.mark.slow
def test_a_run_trains_with_it(tmp_path: Path) -> None:
    options = {"types": 2, "lengths": (1, 1), "poses": (1, 2), "units": 2}
    config = replace(tiny_config(tmp_path), model=ModelConfig("encapnet-v1-feedback", options), epochs=1)
    assert fit(config).test_accuracy > 0.15


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Feedback(units=3), "units is 3"),
        (lambda: Feedback(weight=-1.0), "weight -1.0"),
        (lambda: Feedback(generator="other"), "'other'"),
        (lambda: Feedback(divergence="js"), "'js'"),
        (lambda: Feedback(cost="l1"), "'l1'"),
        (lambda: Feedback(eps=0.0), "eps is 0.0"),
        (lambda: Feedback(iterations=0), "iterations 0"),
        (lambda: Feedback(first="both"), "'both'"),  # pyright: ignore[reportArgumentType]
        (lambda: build("encapnet-v1-feedback", lengths=(1, 0), units=2), "stage 2 has a single layer"),
        (lambda: build("encapnet-v1-feedback", groups="all"), "'all'"),
        (lambda: build("encapnet-v1-feedback", iteration=3), "nearest is 'iterations'"),
        (lambda: build("encapnet-v1-feedback", eps="much"), "must be float"),
        (lambda: StagedModel(nn.Identity(), [], nn.Identity(), (3, 8, 8)), "0 stages"),
        (lambda: StagedModel(nn.Identity(), [nn.ReLU()], nn.Identity(), (3, 8, 8)), "stage 1 is of ReLU"),
        (
            lambda: WithFeedback(create_model("capsnet", channels=4, primary=2)),
            "CapsNet is none: arrange its parts as StagedModel(",
        ),
        (lambda: WithFeedback(build("encapnet-v1-feedback")), "WithFeedback is none"),
        (lambda: staged(nn.Conv2d(4, 4, 3)), "images of (3, 8, 8), as it says: "),
        (lambda: staged(nn.Flatten()), "around stage 1 there is a tensor of 2 dimensions"),
        (lambda: staged(nn.Sequential(nn.Conv2d(3, 8, 1), AsCapsules(1))), "around stage 1 there is Capsules"),
        (lambda: staged(nn.Conv2d(3, 4, 3, 4, 1)), "stage 1 makes maps of 2x2 of 8x8"),
        (lambda: staged(nn.Conv2d(3, 4, 3, (2, 1), 1)), "stage 1 makes maps of 4x8 of 8x8"),
        (lambda: staged(nn.Conv2d(3, 4, 3, 2, 1), capsules=3), "stage 1: 4 channels cannot"),
    ],
)
def test_bad_settings_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
