"""Which form a layer takes: by the rule on shapes, or by what was timed; here the CPU stands in for a GPU, with a clock
of its own."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from test_compile import capsnet
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap

import torchcaps
from torchcaps.capsules import Capsules
from torchcaps.kernels import probe, timing
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, LinearTransform, choose, chosen_forms, set_forms
from torchcaps.layers.choice import _agreed
from torchcaps.routing.fused import _KERNELS, _say_plain_on_cuda, say_missing
from torchcaps.train import fit
from torchcaps.train.checkpoint import load_state
from torchcaps.train.run import RunFolder
from torchcaps.votes import ConvVotes, LinearVotes

POSES = Capsules(torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0)))


class Clock:
    """A stand-in for CUDA's events: each form takes what it is told."""

    def __init__(self, plain: float, fused: float):
        self.seconds, self.turns, self.run = {True: plain, False: fused}, 0, timing.run

    def watch(self, step, *others):
        self.plain = step is None
        return self.run(step, *others)

    def __call__(self, turn, device):
        turn()
        self.turns += 1
        if self.seconds[self.plain] == float("inf"):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.seconds[self.plain]


@pytest.fixture
def clock(monkeypatch):
    """The CPU, taken for a device whose forms are tried and timed."""

    def start(plain, fused):
        made = Clock(plain, fused)
        monkeypatch.setattr(timing, "clock", made)
        monkeypatch.setattr(timing, "run", made.watch)
        monkeypatch.setattr(timing, "TIMED", {"cpu"})
        monkeypatch.setattr(probe, "TRIED", {"cpu"})
        monkeypatch.setattr(probe, "_said", set())
        return made

    return start


def stack(*implementations, iterations=2):
    torch.manual_seed(0)
    transforms = [LinearTransform(6, 5, 4, 4), LinearTransform(5, 3, 4, 4)]
    layers = [CapsuleLayer(x, "dynamic", how) for x, how in zip(transforms, implementations, strict=True)]
    return CapsuleStack(layers, iterations)


def forms(found):
    return {name: each.form for name, each in found.items()}


def test_on_a_cpu_the_rule_decides_and_nothing_is_timed(monkeypatch):
    monkeypatch.setattr(timing, "clock", lambda *others: pytest.fail("it was timed"))
    module = stack("auto", "plain")
    found = torchcaps.choose(module, POSES)
    assert forms(found) == {"layers.0": "fused"} and "rule on shapes decides on cpu" in found["layers.0"].why
    assert not chosen_forms(module)


@pytest.mark.parametrize(("plain", "ours", "form"), [(2.0, 1.0, "fused"), (1.0, 2.0, "plain"), (1.0, 1.0, "plain")])
def test_the_faster_form_is_taken_at_every_size_of_a_batch(clock, monkeypatch, plain, ours, form):
    module, made = stack("auto", "auto"), clock(plain, ours)
    found = choose(module, POSES)
    assert forms(found) == {"layers.0": form, "layers.1": form}
    assert (found["layers.0"].plain_ms, found["layers.0"].fused_ms) == (1000 * plain, 1000 * ours)
    assert made.turns == 2 * 2 * (timing.WARM + timing.TURNS)
    taken = []
    for layer in module.layers:
        kept = layer.kernel.step
        monkeypatch.setattr(layer.kernel, "step", lambda *inputs, kept=kept: taken.append(kept) or kept(*inputs))
    for batch in (1, 2, 9):
        taken.clear()
        module(Capsules(torch.randn(batch, 6, 4)))
        assert len(taken) == (4 if form == "fused" else 0)
    assert made.turns == 2 * 2 * (timing.WARM + timing.TURNS)


def test_a_form_without_memory_is_not_taken(clock):
    module = stack("auto", "auto")
    clock(float("inf"), 5.0)
    found = choose(module, POSES)
    assert set(forms(found).values()) == {"fused"} and found["layers.0"].plain_ms is None
    clock(1.0, float("inf"))
    assert set(forms(choose(module, POSES)).values()) == {"plain"}
    clock(float("inf"), float("inf"))
    found = choose(module, POSES)
    assert set(forms(found).values()) == {"fused"} and "for neither, so a fixed rule" in found["layers.0"].why


def test_a_kernel_that_fails_is_not_timed(clock, monkeypatch):
    made, module = clock(2.0, 1.0), stack("auto", "plain")
    monkeypatch.setattr(probe, "fault", lambda *others: "OutOfResources: shared memory")
    with pytest.warns(UserWarning, match="take plain steps on cpu: OutOfResources"):
        found = choose(module, POSES)
    assert found["layers.0"][:2] == ("plain", "OutOfResources: shared memory") and not made.turns


def test_a_kernel_that_fails_at_the_size_of_a_batch_is_not_taken(clock, monkeypatch):
    """Its trial, at a few images, went well."""
    made, module = clock(2.0, 1.0), stack("auto", "plain")

    def fail(step, *others):
        if step is not None:
            raise RuntimeError("\n out of resource: shared memory\nHardware limit: 101376")
        return made.watch(step, *others)

    monkeypatch.setattr(timing, "run", fail)
    found = choose(module, POSES)
    assert found["layers.0"] == ("plain", "RuntimeError: out of resource: shared memory", 2000, None)
    assert module.layers[0].chosen == {"cpu": "plain"}


def test_what_is_demanded_where_there_are_no_kernels_is_refused(monkeypatch):
    """As on plain Windows, for which torch brings no Triton."""
    monkeypatch.setattr("torchcaps.routing.fused.find_spec", lambda name: None)
    monkeypatch.setattr("torchcaps.layers.layer.DEVICES", {"cpu"})
    demanded, usual = CapsuleLayer(LinearTransform(6, 5, 4, 4), "dynamic", "fused"), stack("auto", "plain")
    _say_plain_on_cuda.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        poses = Capsules(torch.randn(3, 6, 4, device="cuda"))
        with pytest.raises(ValueError, match="'fused', but triton is not installed, which kernels on cuda take; use"):
            demanded.to("cuda")(poses)
        usual.to("cuda")
        for _ in range(2):
            usual(poses)
    assert [str(each.message).partition(",")[0] for each in said] == ["torchcaps: triton is not installed"]
    with pytest.raises(ValueError, match="implementation is 'fused', but there are no kernels for mps; use 'auto'"):
        say_missing("mps", demanded=True)
    say_missing("mps", demanded=False)
    say_missing("meta", demanded=True)


def test_nothing_is_tried_where_what_compiles_kernels_is_missing(clock, monkeypatch):
    made, module = clock(2.0, 1.0), stack("auto", "plain")
    for room in ("layers.choice", "layers.layer", "routing.fused"):
        monkeypatch.setattr(f"torchcaps.{room}.DEVICES", set())
    monkeypatch.setattr("torchcaps.routing.fused.find_spec", lambda name: None)
    monkeypatch.setattr(probe, "fault", lambda *others: pytest.fail("it was tried"))
    found = choose(module, POSES)["layers.0"]
    assert found == ("plain", "numba and llvmlite are not installed, which kernels on cpu take", None, None)
    assert not made.turns


def test_what_is_demanded_is_not_chosen(clock):
    made, module = clock(1.0, 2.0), stack("fused", "plain")
    assert choose(module, POSES) == {} and not made.turns
    assert module.layers[0].form("cpu") == "fused" and module.layers[1].form("cpu") == "plain"


def test_choosing_leaves_no_trace(clock):
    """In modes, random numbers, running statistics and gradients."""
    clock(2.0, 1.0)
    torch.manual_seed(0)
    module = CapsuleLayer(LinearTransform(6, 5, 4, 4), "fm").train()
    before, state = torch.get_rng_state(), copy.deepcopy(module.state_dict())
    choose(module, POSES)
    assert module.training and module.routing.training and torch.equal(torch.get_rng_state(), before)
    for name, value in module.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(p.grad is None for p in module.parameters()) and not module._forward_hooks


@pytest.mark.parametrize("training", [True, False])
def test_what_is_timed_is_what_the_layer_does(clock, monkeypatch, training):
    """Its children, batch and iterations; forward alone in evaluation mode."""
    clock(2.0, 1.0)
    seen, run = [], timing.run

    def watched(step, routing, votes, iterations):
        seen.append((step is None, votes.capsules.poses.shape, iterations, torch.is_grad_enabled()))
        return run(step, routing, votes, iterations)

    monkeypatch.setattr(timing, "run", watched)
    module = stack("plain", "auto", iterations=3).train(training)
    choose(module, POSES)
    wanted = (torch.Size([3, 5, 4]), 3, training)
    assert set(seen) == {(plain, *wanted) for plain in (True, False)}


def test_a_layer_on_its_own_and_one_on_windows_can_be_timed(clock):
    clock(2.0, 1.0)
    module = CapsuleLayer(ConvTransform(2, 3, 4, 4, kernel=2, stride=1, matrix=True), "em")
    maps = Capsules(torch.randn(2, 3, 3, 2, 4), torch.rand(2, 3, 3, 2))
    assert forms(choose(module, maps)) == {"": "fused"} and module.chosen == {"cpu": "fused"}


def test_what_the_example_does_not_reach_has_the_rule(clock):
    clock(1.0, 2.0)
    module = torch.nn.ModuleDict({"used": stack("auto", "plain"), "idle": stack("auto", "plain")})
    module.forward = lambda capsules: module["used"](capsules)
    found = choose(module, POSES)
    assert forms(found) == {"used.layers.0": "plain", "idle.layers.0": "fused"}
    assert "does not reach" in found["idle.layers.0"].why
    with pytest.raises(ValueError, match="example holds no tensor, but str"):
        choose(module, "a picture")


@pytest.mark.parametrize("how", ["compiled", "exported", "fake", "mapped", "meta"])
def test_nothing_is_timed_on_what_holds_no_numbers(clock, how):
    made, module = clock(1.0, 2.0), stack("auto", "auto")

    def inside(poses):
        choose(module, Capsules(poses))
        return module(Capsules(poses))[-1].capsules.poses

    if how == "compiled":
        torch.compiler.reset()
        torch.compile(lambda x: module(Capsules(x))[-1].capsules.poses, backend="eager")(POSES.poses)
    elif how == "exported":
        torch.export.export(module, (POSES,))
    elif how == "fake":
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            inside(mode.from_tensor(POSES.poses))
    elif how == "mapped":
        vmap(inside)(POSES.poses[None])
    else:
        choose(module, Capsules(torch.empty(3, 6, 4, device="meta")))
    assert not made.turns and not chosen_forms(module)


def test_a_compiled_model_is_timed_by_its_own_names(clock):
    clock(1.0, 2.0)
    module = stack("auto", "auto")
    assert list(choose(torch.compile(module, backend="eager"), POSES)) == ["layers.0", "layers.1"]


def test_forms_of_a_compiled_step_are_compiled_where_that_can_be(clock, monkeypatch):
    clock(2.0, 1.0)
    seen = []
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: seen.append((function, dynamic)) or function)
    assert forms(choose(stack("auto", "plain"), POSES, compiled=True)) == {"layers.0": "fused"}
    assert seen == [(timing.run, False)] * 2

    def broken(function, dynamic):
        raise RuntimeError("inductor takes no such form alone")

    monkeypatch.setattr(torch, "compile", broken)
    assert choose(stack("auto", "plain"), POSES, compiled=True)["layers.0"].why == "both were timed"


def test_forms_of_many_layers_are_each_compiled_at_their_own_sizes():
    """torch compiles one piece of code eight times at most, and then runs it as it is."""
    torch.compiler.reset()
    graphs = []

    def watch(graph, example):
        graphs.append([tuple(x.shape) for x in example if isinstance(x, torch.Tensor)])
        return graph.forward

    def double(x):
        return 2 * x

    shapes = [(size, 3) for size in range(2, 13)]
    for shape in shapes:
        torch.compile(timing.anew(double), backend=watch, dynamic=False)(torch.ones(shape))
    assert graphs == [[shape] for shape in shapes]


def test_forms_are_kept_with_copies_and_given_again(clock):
    made, module = clock(1.0, 2.0), stack("auto", "auto")
    choose(module, POSES)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert chosen_forms(other) == {"layers.0": {"cpu": "plain"}, "layers.1": {"cpu": "plain"}}
    fresh = stack("auto", "auto")
    set_forms(fresh, chosen_forms(module))
    made.turns = 0
    assert forms(choose(fresh, POSES, keep=True)) == {"layers.0": "plain", "layers.1": "plain"} and not made.turns
    set_forms(fresh, {"layers.0": {"cpu": "fused"}})
    assert forms(choose(fresh, POSES, keep=True)) == {"layers.0": "fused", "layers.1": "plain"} and not made.turns
    choose(fresh, POSES)
    assert made.turns
    with pytest.raises(ValueError, match=r"forms name the layer 'top', which the model has not; it has layers\.0"):
        set_forms(module, {"top": {"cpu": "plain"}})
    with pytest.raises(ValueError, match="'quick'; it must be plain or fused"):
        set_forms(module, {"layers.0": {"cpu": "quick"}})


def test_the_first_process_decides_for_all(clock, monkeypatch):
    made, said = clock(2.0, 1.0), {}
    group = torch.distributed

    def hand(box, source):
        assert source == 0
        said.setdefault("by", box[0])
        box[0] = said["by"]

    monkeypatch.setattr(group, "is_initialized", lambda: True)
    monkeypatch.setattr(group, "broadcast_object_list", hand)
    monkeypatch.setattr(group, "get_rank", lambda: 0)
    first = choose(stack("auto", "auto"), POSES)
    made.seconds, made.turns = {True: 1.0, False: 2.0}, 0
    monkeypatch.setattr(group, "get_rank", lambda: 1)
    module = stack("auto", "auto")
    assert choose(module, POSES) == first and not made.turns
    assert chosen_forms(module)["layers.1"] == {"cpu": "fused"}
    assert _agreed({}) == first


NETWORKS = {  # what "auto" takes on CUDA where nobody has timed it
    ("dynamic", LinearTransform(1152, 10, 8, 16)): "fused",
    ("dynamic", LinearTransform(1152, 1000, 8, 16)): "plain",
    ("inverted-attention", ConvTransform(32, 32, 16, 16, stride=2, matrix=True)): "fused",
    ("inverted-attention", LinearTransform(800, 10, 16, 16, matrix=True)): "plain",
    ("em", ConvTransform(32, 32, 16, 16, stride=2, matrix=True)): "fused",
    ("em", LinearTransform(800, 10, 16, 16, matrix=True)): "plain",
    ("inverted-attention-c", LinearTransform(64, 10, 16, 16, matrix=True)): "plain",
    ("variational-bayes", LinearTransform(64, 10, 16, 16, matrix=True)): "plain",
    ("variational-bayes", ConvTransform(32, 32, 16, 16, stride=2, matrix=True)): "fused",
    ("fm", LinearTransform(64, 32, 16, 16, matrix=True)): "fused",
    ("fm", ConvTransform(32, 32, 16, 16, stride=2, matrix=True)): "fused",
    ("xnodr-xnidr", ConvTransform(32, 32, 16, 16, stride=2, matrix=True)): "fused",
    ("self-attention", LinearTransform(16, 10, 8, 16)): "fused",
    ("self-attention", LinearTransform(16, 1000, 8, 16)): "plain",
    ("uniform", LinearTransform(64, 32, 16, 16, matrix=True)): "plain",
}


@pytest.mark.parametrize(("case", "form"), NETWORKS.items(), ids=lambda x: x if isinstance(x, str) else x[0])
def test_where_nobody_chose_cuda_is_careful(monkeypatch, case, form):
    monkeypatch.setattr("torchcaps.layers.layer.DEVICES", {"cpu", "cuda"})
    layer = CapsuleLayer(case[1], case[0])
    assert layer.form("cuda") == form
    assert layer.form("cpu") == ("plain" if case[0] == "uniform" else "fused")
    assert layer.form("xpu") == "plain"
    if layer.fused:
        layer.chosen["cuda"] = "plain"
        assert layer.form("cuda") == "plain" and CapsuleLayer(case[1], case[0], "fused").form("cuda") == "fused"


def test_no_kernel_is_taken_on_cuda_unseen_where_votes_fill_the_registers():
    wide = {
        LinearVotes: LinearTransform(16, 1000, 8, 16),
        ConvVotes: ConvTransform(2, 256, 16, 16, stride=2, matrix=True),
    }
    ours = {key: kernel for key, kernel in _KERNELS.items() if key[1].__module__.startswith("torchcaps.")}
    assert ours  # beside those that other tests register
    for (votes, routing), kernel in ours.items():
        assert not kernel.suits("cuda", wide[votes]), (votes.__name__, routing.__name__)


def test_a_run_keeps_what_it_chose(clock, tmp_path: Path, monkeypatch):
    """It is there before the first step, in each checkpoint, and after the run was cut nothing is timed."""
    made = clock(2.0, 1.0)
    monkeypatch.setattr("torchcaps.train.learner.TIMED", {"cpu"})
    whole = fit(capsnet(tmp_path / "whole", epochs=1)).folder
    wanted = {"stack.layers.0": {"cpu": "fused"}}
    assert load_state(RunFolder(whole).last)["forms"] == wanted and made.turns
    kept = json.loads((whole / "environment.json").read_text())["forms"]["stack.layers.0"]
    assert kept["form"] == "fused" and kept["why"] == "both were timed" and kept["plain_ms"] == 2000
    with pytest.raises(KeyboardInterrupt):
        fit(capsnet(tmp_path / "cut", epochs=1), max_minutes=1e-9)
    made.turns, made.seconds = 0, {True: 1.0, False: 2.0}
    ended = fit(capsnet(tmp_path / "cut", epochs=1), resume=True).folder
    assert load_state(RunFolder(ended).last)["forms"] == wanted and not made.turns
    assert (ended / "last" / "model.safetensors").read_bytes() == (whole / "last" / "model.safetensors").read_bytes()


def test_a_run_on_a_cpu_says_nothing_of_forms(tmp_path: Path):
    ended = fit(capsnet(tmp_path, epochs=1)).folder
    assert "forms" not in load_state(RunFolder(ended).last)
    assert "forms" not in json.loads((ended / "environment.json").read_text())
