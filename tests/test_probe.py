"""The trial of a fused step on a device: here on the CPU, whose kernels are taken for those of a GPU."""

import copy
import pickle
import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from interpreted import interpreted, needs_interpreter
from layers import ALL, children
from layers import layer as any_layer
from routings import FIRST, UNFIT
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, vmap
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from torchcaps.capsules import Capsules
from torchcaps.kernels import probe
from torchcaps.kernels.dynamic import op
from torchcaps.kernels.inverted_attention import op as of_attention
from torchcaps.layers import CapsuleLayer, CapsuleStack, LinearTransform

POSES = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def trials(monkeypatch):
    """The steps that were tried, in order."""
    tried, fault = [], probe.fault
    monkeypatch.setattr(probe, "TRIED", {"cpu"})
    monkeypatch.setattr(probe, "_said", set())
    monkeypatch.setattr(probe, "fault", lambda step, *others: tried.append(step) or fault(step, *others))
    return tried


def layer(implementation="auto", routing="dynamic", **options):
    torch.manual_seed(0)
    return CapsuleLayer(LinearTransform(5, 3, 4, 4), routing, implementation, **options)


def run(module, poses=POSES, iterations=2):
    return module(Capsules(poses), iterations).capsules.poses


class Home:
    """The kernels of the CPU, but for what is broken: `forward` or `backward`, by `how`."""

    def __init__(self, part, how):
        from torchcaps.kernels.dynamic import cpu

        def broken(*inputs):
            return how(getattr(cpu, part)(*inputs))

        self.forward, self.backward = cpu.forward, cpu.backward
        setattr(self, part, broken)


def fail(_):
    raise RuntimeError("\n out of resource: shared memory, Required: 300000\nHardware limit: 101376")


def spoil(found):
    return found * 1.05 if isinstance(found, torch.Tensor) else (found[0] * 1.05, *found[1:])


def test_a_step_is_tried_once_a_layer_and_then_taken(trials):
    module = layer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = run(module), run(module)
    assert trials == [module._fused.step] and torch.equal(first, second)
    torch.testing.assert_close(first, run(layer("plain")))


@pytest.mark.parametrize(
    ("how", "reason"), [(fail, "RuntimeError: out of resource: shared memory, Required: 300000"), (spoil, "differ")]
)
@pytest.mark.parametrize("part", ["forward", "backward"])
def test_what_fails_is_plain_with_one_warning(monkeypatch, trials, part, how, reason):
    home, module = Home(part, how), layer()
    monkeypatch.setattr(op, "_home", lambda x: home)
    with pytest.warns(UserWarning, match=f"layers of 'dynamic' take plain steps on cpu: .*{reason}") as seen:
        leaf = POSES.clone().requires_grad_()
        out = run(module, leaf)
        out.sum().backward()
        run(module)
        run(layer())
    assert len(seen) == 1 and len(trials) == 2
    torch.testing.assert_close(out, run(layer("plain")))
    with pytest.raises(ValueError, match=f"implementation is 'fused', but the kernel .* on cpu: .*{reason}.*'plain'"):
        run(layer("fused"))


def compiled(module):
    torch.compiler.reset()
    return torch.compile(module, backend="eager", fullgraph=True)(Capsules(POSES), 2).capsules.poses


def exported(module):
    stack = CapsuleStack([module], 2)
    return torch.export.export(stack, (Capsules(POSES),)).module()(Capsules(POSES))[-1].capsules.poses


def faked(module):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert run(module, mode.from_tensor(POSES)).shape == (3, 3, 4)
    return run(layer("plain"))


def mapped(module):
    return vmap(lambda x: run(module, x))(POSES[None])[0]


def differentiated(module):
    assert grad(lambda x: run(module, x).sum())(POSES).shape == POSES.shape
    return run(layer("plain"))


@pytest.mark.parametrize("how", [compiled, exported, faked, mapped, differentiated], ids=lambda f: f.__name__)
@pytest.mark.parametrize("implementation", ["auto", "fused"])
def test_what_does_not_run_now_is_no_trial(monkeypatch, trials, how, implementation):
    """Steps are plain there, and stay free to be tried; where the kernel was demanded, compiled code has it."""
    calls, home = [], op._home(POSES)
    monkeypatch.setattr(op, "_home", lambda x: calls.append(x) or home)
    torch.testing.assert_close(how(module := layer(implementation)), run(layer("plain")))
    assert not trials and bool(calls) == (how is compiled and implementation == "fused")
    run(module)
    assert len(trials) == 1


def test_compiled_steps_are_fused_once_they_were_tried(monkeypatch, trials):
    module, calls, home = layer(), [], op._home(POSES)
    run(module)
    monkeypatch.setattr(op, "_home", lambda x: calls.append(x) or home)
    torch.testing.assert_close(compiled(module), run(layer("plain")))
    assert calls and len(trials) == 1


def test_compiled_steps_of_other_types_are_fused_where_what_was_tried_went_well(monkeypatch, trials):
    module, calls, home = layer(), [], op._home(POSES)
    run(module)
    monkeypatch.setattr(op, "_home", lambda x: calls.append(x) or home)
    torch.compiler.reset()
    with torch.autocast("cpu", torch.bfloat16):
        torch.compile(module, backend="eager", fullgraph=True)(Capsules(POSES.bfloat16()), 2)
    assert calls and len(trials) == 1


def counter():
    return FlopCounterMode(display=False)


@pytest.mark.parametrize(
    "context",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), counter, nullcontext],
)
@pytest.mark.parametrize("routing", ["dynamic", "fm"])
def test_a_trial_leaves_no_trace(trials, routing, context):
    """In random numbers, running statistics, gradients and counts, whatever mode the caller is in."""
    modules = [layer(routing=routing), layer("plain", routing)]
    seen = []
    for module in modules:
        torch.manual_seed(1)
        with context() as mode:
            run(module)
        counted = mode.get_total_flops() if isinstance(mode, FlopCounterMode) else 0
        seen.append([torch.get_rng_state(), *module.buffers(), torch.tensor(counted)])
        assert all(p.grad is None for p in module.parameters())
    assert len(trials) == 1
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b)


def test_a_checkpoint_around_the_layer_does_not_see_the_trial(trials):
    module, leaf = layer(), POSES.clone().requires_grad_()
    checkpoint(lambda x: run(module, x), leaf, use_reentrant=False).sum().backward()
    (wanted,) = torch.autograd.grad(run(layer("plain"), leaf).sum(), leaf)
    torch.testing.assert_close(leaf.grad, wanted)
    assert len(trials) == 1


def test_parameters_that_are_no_leaves_can_be_tried(trials):
    module = layer(start="learnt")
    state = {"routing.initial": torch.zeros(5, 3, requires_grad=True) * 2}
    out = torch.func.functional_call(module, state, (Capsules(POSES), 2)).capsules.poses
    assert len(trials) == 1 and out.requires_grad


def test_copies_know_what_was_tried_and_pickles_are_tried_anew(trials):
    """A pickle may wake up on another machine; a copy, such as the average that is evaluated each epoch, stays here."""
    module = layer()
    run(module)
    for tries, other in ((1, copy.deepcopy(module)), (2, pickle.loads(pickle.dumps(module)))):
        assert torch.equal(run(other), run(module)) and len(trials) == tries
    twin = copy.deepcopy(module.kernel)
    twin.faults[torch.device("cpu"), torch.float32, torch.float32] = "of the copy alone"
    assert twin.step is module.kernel.step and not module.kernel.faults


@pytest.mark.parametrize("name", ALL)
def test_no_kernel_that_is_right_fails(name, trials):
    for routing, options in FIRST:
        if name in UNFIT.get(routing, ()) or ("placed" in name and routing.startswith("xnodr")):
            continue
        module = any_layer(name, routing, dtype=torch.float32, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            module(children(name, dtype=torch.float32), 1)
    assert len(trials) > 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear-vector", "conv-vector"])
def test_no_kernel_that_is_right_fails_in_half_precision(name, trials):
    """Children as they come under autocast, and weights of a layer that was converted."""
    assert name in ALL
    for routing, options in FIRST:
        if name in UNFIT.get(routing, ()):
            continue
        for half in (False, True):
            module = any_layer(name, routing, dtype=torch.float32, **options)
            inputs = children(name, dtype=torch.float32)
            inputs = inputs._replace(poses=inputs.poses.bfloat16())
            with warnings.catch_warnings(), nullcontext() if half else torch.autocast("cpu", torch.bfloat16):
                warnings.simplefilter("error")
                if half:
                    module, inputs = module.bfloat16(), Capsules(*(x if x is None else x.bfloat16() for x in inputs))
                module(inputs, 1)
    assert len(trials) > 12


def test_a_kernel_that_fails_on_children_in_half_precision_alone_is_not_taken_there(monkeypatch, trials):
    """Inverted attention's kernels read each tensor in its own type; a new type is a new kernel on a GPU."""

    right, module = of_attention._home(POSES), layer(routing="inverted-attention")

    def forward(poses, *rest):
        return fail(0) if poses.dtype == torch.bfloat16 else right.forward(poses, *rest)

    home = SimpleNamespace(forward=forward, backward=right.backward)
    monkeypatch.setattr(of_attention, "_home", lambda x: home)
    run(module)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.warns(UserWarning, match="on cpu for children in bfloat16: RuntimeError: out"),
    ):
        run(module, POSES.bfloat16())
    assert len(trials) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(module)
    assert len(trials) == 2


def test_votes_of_one_s_own_are_judged_by_who_made_them(trials):
    """Which need neither weights nor children that we could draw a trial of."""
    votes = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    kernel = probe.Fused(lambda *others: pytest.fail("it was tried"), demanded=False)
    assert kernel.taken(layer().routing, votes) and kernel.taken(layer().routing, votes)
    assert len(trials) == 1


@needs_interpreter
@pytest.mark.parametrize(
    "routing", ["dynamic", "xnidr", "em", "fm", "inverted-attention", "inverted-attention-c", "variational-bayes"]
)
def test_the_kernels_of_cuda_pass(routing, trials):
    transform = LinearTransform(2, 2, 2, 2)
    module = CapsuleLayer(transform, routing)
    with interpreted(elements=2048, programs=1), warnings.catch_warnings():
        warnings.simplefilter("error")
        module(Capsules(torch.randn(2, 2, 2), torch.rand(2, 2)))
    assert len(trials) == 1
