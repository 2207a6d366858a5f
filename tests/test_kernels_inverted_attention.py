"""The fused step of inverted attention against the plain one, layer by layer and sum by sum."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fused import Calls, check, held, largest_allocation, memory_of_nan, outcome, twin
from inverted_attention_cases import CASES, FLAGS, distance, inputs, plain
from layers import children
from layers import layer as any_layer
from naive import conv_votes, inverted_attention
from torch.utils.flop_counter import FlopCounterMode

from torchcaps import create_model
from torchcaps.capsules import Capsules
from torchcaps.kernels.inverted_attention.op import attend, attend_backward
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, LinearTransform, use_implementation

every_flag = pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
LAYERS = ["linear-matrix", "linear-flattened", "conv-matrix", "conv-padded", "conv-vector", "conv-placed"]


@every_case
@every_flag
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_sums_and_gradients_equal_the_plain_ones(case, flags, dtype, tolerance):
    tensors, geometry = inputs(case, dtype, binary=flags[1])
    wanted, gradients, upstream = plain(tensors, geometry, *flags)
    with memory_of_nan():
        out = attend(*tensors, *geometry, *flags)
        found = torch.autograd.grad(out, tensors, upstream)
    assert out.dtype == dtype
    for a, b in zip((out, *found), (wanted, *gradients), strict=True):
        assert distance(a, b) < tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_but_once(dtype):
    tensors, geometry = inputs(CASES["conv-padded"], dtype)
    wide = [x.detach().double().requires_grad_() for x in tensors]
    wanted, gradients, upstream = plain(wide, geometry)
    out = attend(*tensors, *geometry)
    found = torch.autograd.grad(out, tensors, upstream.to(dtype))
    for a, b in zip((out, *found), (wanted, *gradients), strict=True):
        assert a.dtype == dtype and distance(a, b) < 2 * torch.finfo(dtype).eps


def test_types_may_be_mixed():
    (poses, weight, query), geometry = inputs(CASES["conv"], torch.float32)
    half = poses.detach().bfloat16().requires_grad_()
    out = attend(half, weight, query, *geometry)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, attend(half.float(), weight, query, *geometry))
    assert torch.autograd.grad(out.sum(), half)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["conv-padded", "linear-matrix"])
def test_the_gradient_is_that_of_the_sums(name):
    tensors, geometry = inputs(CASES[name], torch.float64)
    assert torch.autograd.gradcheck(lambda *x: attend(*x, *geometry), tensors)


@every_flag
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_an_operation_of_torch(dtype, flags):
    tensors, geometry = inputs(CASES["conv-padded"], dtype, binary=flags[1])
    tolerances = {"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {}
    torch.library.opcheck(attend, (*tensors, *geometry, *flags), **tolerances)
    upstream = torch.ones_like(tensors[2])
    constants = [x.detach() for x in (upstream, *tensors)]
    torch.library.opcheck(attend_backward, (*constants, *geometry, *flags))


@pytest.mark.parametrize("options", [{}, {"start": "learnt"}, {"bias": True, "scaled": True}], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_equals_its_plain_twin(name, options):
    layer = any_layer(name, "inverted-attention", **options)
    assert layer.fused
    with memory_of_nan():
        check(CapsuleStack([layer], 3), children(name).poses, rtol=1e-9, atol=1e-11)


def test_plain_and_fused_steps_may_be_mixed():
    layer, capsules = any_layer("conv-padded", "inverted-attention"), children("conv-padded")
    wanted = layer(capsules, 4).capsules.poses
    votes, steps = layer.votes(capsules), []
    for t, implementation in enumerate(("plain", "fused", "plain", "fused")):
        layer.implementation = implementation
        steps.append(layer.step(votes, steps[-1].state if steps else layer.routing.start(votes), t))
    torch.testing.assert_close(steps[-1].capsules.poses, wanted, rtol=1e-10, atol=1e-12)


def test_a_result_may_be_used_twice():
    layer, poses = any_layer("conv-matrix", "inverted-attention"), children("conv-matrix").poses.requires_grad_()
    step = layer(Capsules(poses), 2)
    (both,) = torch.autograd.grad(step.capsules.poses.sum() + step.state.square().sum(), poses, retain_graph=True)
    (one,) = torch.autograd.grad(step.capsules.poses.sum(), poses, retain_graph=True)
    (two,) = torch.autograd.grad(step.state.square().sum(), poses)
    torch.testing.assert_close(both, one + two)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e12])
def test_zero_tiny_and_huge_capsules(scale):
    layer = any_layer("conv-matrix", "inverted-attention", dtype=torch.float32)
    module, poses = CapsuleStack([layer], 3), children("conv-matrix", dtype=torch.float32).poses * scale
    outs, grads, _ = outcome(module, poses)
    wanted, plain_grads, _ = outcome(twin(module), poses)
    torch.testing.assert_close(outs, wanted, rtol=1e-3, atol=1e-4)
    for name, e in plain_grads.items():
        assert torch.isfinite(grads[name]).all() == torch.isfinite(e).all(), name


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_stays_so_and_stays_in_its_image(bad):
    layer, poses = any_layer("linear-matrix", "inverted-attention"), children("linear-matrix").poses
    poses[1, 2, 1] = bad
    seen = layer(Capsules(poses), 2).capsules.poses.isnan().flatten(1).any(1)
    assert seen.tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_it_gives_what_the_plain_step_gives(dtype):
    layer = any_layer("conv-matrix", "inverted-attention", dtype=torch.float32, layer_norm=False)
    poses = children("conv-matrix", dtype=torch.float32).poses
    with torch.autocast("cpu", dtype):
        fused = outcome(CapsuleStack([layer], 2), poses)
        wanted = outcome(twin(CapsuleStack([layer], 2)), poses)
    eps = torch.finfo(dtype).eps
    for a, b in zip(fused[0], wanted[0], strict=True):
        assert a.dtype == b.dtype == dtype and distance(a, b) < 8 * eps
    assert all(distance(fused[1][name], wanted[1][name]) < 16 * eps for name in wanted[1])


def test_compiles_whole():
    stack = CapsuleStack([any_layer("conv-padded", "inverted-attention")], 3)
    poses = children("conv-padded").poses
    torch.compiler.reset()
    compiled = torch.compile(stack, fullgraph=True, backend="aot_eager")
    for a, b in zip(outcome(compiled, poses)[1].values(), outcome(stack, poses)[1].values(), strict=True):
        torch.testing.assert_close(a, b)


@every_flag
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same(threads, flags):
    tensors, geometry = inputs(CASES["conv-wide"], torch.float64, binary=flags[1])
    wanted, before = attend(*tensors, *geometry, *flags), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = attend(*tensors, *geometry, *flags)
        assert torch.equal(out, wanted)
        gradients = torch.autograd.grad(out, tensors, torch.ones_like(out))
    finally:
        torch.set_num_threads(before)
    for a, b in zip(gradients, torch.autograd.grad(wanted, tensors, torch.ones_like(out)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_many_positions_at_a_time_give_the_same(monkeypatch):
    """As weights beyond a core's cache have them."""
    from torchcaps.kernels.inverted_attention import cpu

    tensors, geometry = inputs(CASES["conv-padded"], torch.float64)
    wanted = attend(*tensors, *geometry)
    gradients = torch.autograd.grad(wanted, tensors, torch.ones_like(wanted))
    monkeypatch.setattr(cpu, "CACHE", 0)
    out = attend(*tensors, *geometry)
    for a, b in zip((out, *torch.autograd.grad(out, tensors, torch.ones_like(out))), (wanted, *gradients), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_flops_are_counted():
    """As the plain form's products with W, see `test_cost`."""
    tensors, geometry = inputs(CASES["conv"], torch.float32)
    pairs, product = 2 * 2 * 3 * 9 * 2 * 3, 2 * 2 * 2
    with FlopCounterMode(display=False) as counter:
        out = attend(*tensors, *geometry)
    assert counter.get_total_flops() == 2 * pairs * 2 * product
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * pairs * 5 * product
    with FlopCounterMode(display=False) as counter:
        attend(*tensors, *geometry, xnor=True).sum().backward()
    assert counter.get_total_flops() == 2 * pairs * (7 * product + 3 * 2 * 2)  # and signs times parents, for 4 elements


def test_what_it_refuses():
    transform = ConvTransform(2, 3, 4, 4, matrix=True)
    with pytest.raises(ValueError, match="takes scope 'window', not 'image'"):
        CapsuleLayer(transform, "inverted-attention", "fused", scope="image")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("attention-resnet-cifar10", 32),
        ("attention-resnet-cifar100", 32),
        ("attention-simple-cifar10", 32),
        ("attention-diverse-multimnist-matrix", 36),
        ("attention-diverse-multimnist-vector", 36),
    ],
)
def test_the_papers_networks_do_not_fall_back(name, size):
    """Every layer is fused, and every step after the first of a layer is the kernel's, forward and backward."""
    with torch.device("meta"):
        model = create_model(name, num_classes=100 if name.endswith("100") else 10, iterations=3)
        use_implementation(model, "fused")
        with Calls() as calls:
            model(torch.rand(2, 3, size, size)).scores.sum().backward()
    (stack,) = [each for each in model.modules() if isinstance(each, CapsuleStack)]
    steps = sum(t > 0 for _, t in stack.plan())
    assert steps >= 3 and sorted(calls.names) == ["attend"] * steps + ["attend_backward"] * steps


BATCH = 4
VOTES = BATCH * 49 * 288 * 32 * 16 * 4  # bytes of the votes of issue 14's layer


def reference_layer():
    torch.manual_seed(0)
    layer = CapsuleLayer(ConvTransform(32, 32, 16, 16, stride=2, matrix=True), "inverted-attention", "fused")
    return layer, torch.randn(BATCH, 16, 16, 32, 16, requires_grad=True)


def test_nothing_of_the_votes_size_is_held_or_made():
    layer, poses = reference_layer()
    norm, weight = layer.routing.norm, layer.transform.weight

    def fused():
        return layer(Capsules(poses), 3).capsules.poses

    def naive():
        return inverted_attention(conv_votes(poses, weight, 4, 2), norm.weight, norm.bias, 3)

    torch.testing.assert_close(fused().flatten(1, 2), naive(), rtol=1e-3, atol=1e-4)
    total, largest = held(fused)
    assert total <= held(naive)[0] / 20 and largest <= VOTES / 20
    assert largest_allocation(lambda: naive().sum().backward()) >= VOTES  # the measure sees votes
    assert largest_allocation(lambda: fused().sum().backward()) <= VOTES / 20


def test_a_training_run_keeps_its_loss_curve():
    torch.manual_seed(0)
    transforms = [ConvTransform(4, 4, 16, 16, stride=2, matrix=True), LinearTransform(36, 10, 16, 16, matrix=True)]
    stack = CapsuleStack([CapsuleLayer(x, "inverted-attention") for x in transforms], 3, "concurrent")
    poses, labels = torch.randn(16, 7, 7, 4, 16), torch.arange(16) % 10
    curves = []
    for each in (stack, twin(stack)):
        optimizer = torch.optim.SGD(each.parameters(), 0.1, momentum=0.9)
        losses = []
        for _ in range(20):
            scores = each(Capsules(poses))[-1].capsules.poses.mean(-1) * 10
            loss = torch.nn.functional.cross_entropy(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0][-1] < 0.7 * curves[0][0]
    assert curves[0] == pytest.approx(curves[1], rel=2e-3)


@pytest.mark.slow  # `test_probe.py` has the smallest
@pytest.mark.parametrize("sizes", ["few", ""], ids=["few", "all"])
def test_the_triton_form_equals_the_plain_one(sizes):
    script = Path(__file__).parent / "interpreted_inverted_attention.py"
    command = [sys.executable, script, *sizes.split()]
    subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, check=True, cwd=script.parent)
