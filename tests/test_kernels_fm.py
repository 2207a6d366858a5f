"""The fused step of FM agreement against the plain one."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from fused import SIZES, check, held, largest_allocation, memory_of_nan, outcome, stack, twin
from naive import fm, linear_votes
from torch.utils.flop_counter import FlopCounterMode

import torchcaps.kernels.fm.step  # noqa: F401
from torchcaps.capsules import Capsules
from torchcaps.kernels.fm.op import fm_moments, fm_sums
from torchcaps.layers import CapsuleLayer, CapsuleStack, LinearTransform

VARIANTS = [
    {},
    {"batch_norm": None},
    {"batch_norm": "child", "normalised": True},
    {"batch_norm": "pair", "mean": False},
    {"l2": False, "halved": False},
    {"l2": False, "batch_norm": None, "mean": False},
]
every_variant = pytest.mark.parametrize("options", VARIANTS, ids=str)


@every_variant
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_plain_step_in_float64(size, options):
    if size == "one child" and options.get("batch_norm") in ("child", "pair"):
        pytest.skip("statistics of one vote have no gradient to compare")
    with memory_of_nan():
        check(*stack(size, "fm", torch.float64, **options), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("size", ["odd", "vector", "matrix", "wide"])
def test_equals_the_plain_step_in_float32(size):
    with memory_of_nan():
        check(*stack(size, "fm", torch.float32), rtol=1e-3, atol=1e-4)


def test_evaluates_by_running_statistics():
    module, poses = stack("matrix", "fm", torch.float64)
    module(Capsules(poses))
    check(module.eval(), poses, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_but_once(dtype):
    module, poses = stack("vector", "fm", dtype, batch_norm=None)
    (out, *_), grads, _ = outcome(module, poses)
    (truth, *_), true_grads, _ = outcome(twin(module).double(), poses.double())
    eps = torch.finfo(dtype).eps
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), truth, rtol=2 * eps, atol=4 * eps)
    for name, e in true_grads.items():
        found = grads[name]
        assert found is not None and e is not None and found.dtype == dtype
        assert (found.double() - e).abs().max() <= 16 * eps * e.abs().max(), name


def operands(b, i, rows, c, j, m, dtype=torch.float64, per=(1, 1)):
    torch.manual_seed(0)
    shapes = ((b, i, rows * c), (j, i, c, m), (*per, rows * m), (*per, rows * m))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("per", [(1, 1), (3, 1), (3, 3)])
@pytest.mark.parametrize("l2", [True, False])
def test_the_gradient_is_that_of_the_sums(per, l2):
    assert torch.autograd.gradcheck(lambda *x: fm_sums(*x, l2, 1e-12), operands(2, 3, 2, 2, 3, 2, per=per))


@pytest.mark.parametrize("columns", [2, 17])
def test_the_gradient_is_that_of_the_moments(columns):
    poses, weight, *_ = operands(3, 2, 1 if columns > 2 else 2, columns, 2, 3)
    assert torch.autograd.gradcheck(fm_moments, (poses, weight))


def test_moments_of_votes_close_to_each_other_and_far_from_zero():
    """Where a difference of squares would leave nothing in float32."""
    poses, weight, *_ = operands(64, 5, 1, 4, 3, 2)
    near = (1000 + 1e-2 * poses.detach()).float()
    _, variance = fm_moments(near, weight.detach().float())
    votes = torch.einsum("bic,jicm->bijm", near.double(), weight.detach().float().double())
    torch.testing.assert_close(variance.double(), votes.var(0, correction=0), rtol=0.02, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_are_operations_of_torch(dtype):
    inputs = operands(3, 5, 1, 4, 3, 5, dtype)
    utils = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(fm_sums, (*inputs, True, 1e-12), test_utils=utils)
    torch.library.opcheck(fm_moments, inputs[:2], test_utils=utils)


def test_compiles_whole():
    module, poses = stack("vector", "fm", torch.float64)
    compiled = torch.compile(lambda x: module(Capsules(x))[-1].capsules.poses, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(poses), module(Capsules(poses))[-1].capsules.poses)


def test_autocast_gives_its_type_from_sums_in_float32():
    module, poses = stack("vector", "fm", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        half = module(Capsules(poses))[-1].capsules
        plain = twin(module)(Capsules(poses))[-1].capsules
        assert [x.dtype for x in half] == [x.dtype for x in plain] == [torch.bfloat16, torch.float32]
    torch.testing.assert_close(half.poses.float(), module(Capsules(poses))[-1].capsules.poses, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("options", [{}, {"batch_norm": None}])
def test_zero_capsules_and_huge_ones(options):
    module, poses = stack("vector", "fm", torch.float32, **options)
    for scale in (0.0, 1e15):
        outs, grads, _ = outcome(module, poses * scale)
        plain, plain_grads, _ = outcome(twin(module), poses * scale)
        torch.testing.assert_close(outs, plain, rtol=1e-3, atol=1e-4)
        for name, e in plain_grads.items():
            assert torch.isfinite(grads[name]).all() == torch.isfinite(e).all(), (scale, name)


def test_not_a_number_stays_one():
    module, poses = stack("vector", "fm", torch.float32, batch_norm=None)
    poses[4, 2, 1] = torch.nan
    seen = module(Capsules(poses))[-1].capsules.poses.isnan().flatten(1)
    assert seen[4].all() and not seen[[0, 1, 2, 3, 5]].any()


def papers_stack():
    """64 -> 32 -> 16 -> 10 capsules of 4x4 with batch norm (section 4.2)."""
    widths = (64, 32, 16, 10)
    return CapsuleStack(
        [CapsuleLayer(LinearTransform(i, j, 16, 16, matrix=True), "fm") for i, j in pairwise(widths)], iterations=1
    )


def test_the_papers_stack_is_fused():
    module = papers_stack()
    assert all(layer.fused for layer in module.layers)
    check(module, torch.randn(5, 64, 16), rtol=2e-3, atol=2e-3)
    spatial = CapsuleLayer(LinearTransform(4 * 64, 32, 16, 16, matrix=True), "fm", "fused")
    assert spatial(Capsules(torch.randn(2, 2, 2, 64, 16))).capsules.poses.shape == (2, 32, 16)


BATCH, VOTES = 32, 32 * 1152 * 10 * 16 * 4  # images, and bytes of their votes


def test_nothing_of_the_votes_size_exists():
    torch.manual_seed(0)
    layer = CapsuleLayer(LinearTransform(1152, 10, 8, 16, std=0.1), "fm")
    poses, weight, norm = torch.randn(BATCH, 1152, 8, requires_grad=True), layer.transform.weight, layer.routing.norm
    assert layer.fused

    def function(x):
        return layer(Capsules(x)).capsules.poses

    total, largest = held(function, poses)
    allowed = sum(x.untyped_storage().nbytes() for x in (poses, weight))
    naive = held(lambda x: fm(linear_votes(x, weight), norm.weight, norm.bias)[0], poses)[0]
    assert total - allowed <= naive / 20 and largest < VOTES / 2
    assert largest_allocation(lambda: function(poses).sum().backward()) <= VOTES / 2


def test_what_it_refuses():
    with pytest.raises(ValueError, match="takes eps from 1e-24, not 1e-30"):
        CapsuleLayer(LinearTransform(4, 3, 2, 2), "fm", "fused", eps=1e-30)


def test_flops_are_counted():
    """As the plain form's products with W, see `test_cost`."""
    inputs = operands(3, 5, 1, 4, 3, 5)
    with FlopCounterMode(display=False) as counter:
        total, squares = fm_sums(*inputs, True, 1e-12)
        (total.sum() + squares.sum()).backward()
    assert counter.get_total_flops() == (3 + 8) * (2 * 3 * 5 * 4 * 3 * 5)
    with FlopCounterMode(display=False) as counter:
        fm_moments(*inputs[:2])
    assert counter.get_total_flops() == 2 * 3 * 5 * 4 * 4 + 2 * (4 + 2) * 3 * 5 * 4 * 5


def test_a_training_run_keeps_its_loss_curve():
    module, poses = stack("vector", "fm", torch.float32)
    labels = torch.arange(len(poses)) % 10
    curves = []
    for each in (module, twin(module)):
        optimizer = torch.optim.SGD(each.parameters(), 0.3, momentum=0.9)
        losses = []
        for _ in range(20):
            loss = torch.nn.functional.cross_entropy(each(Capsules(poses))[-1].capsules.activations, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0][-1] < 0.7 * curves[0][0]
    assert curves[0] == pytest.approx(curves[1], rel=2e-3)


def test_the_triton_forms_equal_those_of_the_cpu():
    """Of dynamic routing too."""
    script = Path(__file__).parent / "interpreted_linear.py"
    subprocess.run([sys.executable, script], env=os.environ | {"TRITON_INTERPRET": "1"}, check=True, cwd=script.parent)
