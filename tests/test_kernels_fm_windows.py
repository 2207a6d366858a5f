"""The fused step of FM agreement on windows against the plain one, and against loops."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fm_windows_cases import CASES, inputs, plain
from fused import check, held, largest_allocation, memory_of_nan, outcome, twin
from inverted_attention_cases import distance
from naive import conv_votes, fm
from torch.utils.flop_counter import FlopCounterMode

from torchcaps.capsules import Capsules
from torchcaps.kernels.fm_windows.op import fm_window_sums, fm_window_sums_backward
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform

# (children, parents, pose, parents' pose), options of the windows
WINDOWS = {
    "conv": ((2, 3, 4, 6), {"stride": 2}),
    "padded": ((3, 17, 4, 4), {"padding": 1, "matrix": True}),
    "wide": ((2, 33, 9, 9), {"padding": 1, "stride": 2, "matrix": True}),
    "one parent": ((2, 1, 3, 2), {"kernel": 1}),
}
VARIANTS = [
    {},
    {"batch_norm": None},
    {"batch_norm": "child", "normalised": True},
    {"batch_norm": "pair", "mean": False},
    {"l2": False, "halved": False},
    {"l2": False, "batch_norm": None, "mean": False},
]
FLAGS = [("one", True), ("child", False), ("pair", True)]  # what has its own scale, and l2
every_flag = pytest.mark.parametrize(("per", "l2"), FLAGS)


def stack(windows, dtype, **options):
    """A fused stack of one layer whose every parameter is random, and poses for it."""
    torch.manual_seed(0)
    sizes, geometry = WINDOWS[windows]
    module = CapsuleStack([CapsuleLayer(ConvTransform(*sizes, **geometry), "fm", "fused", **options)], 1).to(dtype)
    for parameter in module.layers[0].routing.parameters():
        torch.nn.init.normal_(parameter, mean=0.3, std=0.5)
    return module, torch.randn(3, 5, 4, sizes[0], sizes[2], dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("windows", WINDOWS)
def test_equals_the_plain_step_in_float64(windows, options):
    with memory_of_nan():
        check(*stack(windows, torch.float64, **options), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("windows", WINDOWS)
def test_equals_the_plain_step_in_float32(windows):
    with memory_of_nan():
        check(*stack(windows, torch.float32), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@every_flag
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_sums_and_gradients_equal_the_plain_ones(case, per, l2, dtype, tolerance):
    tensors, geometry = inputs(case, per, dtype)
    wanted, gradients, upstream = plain(tensors, geometry, l2)
    with memory_of_nan():
        outs = fm_window_sums(*tensors, *geometry, l2, 1e-12)
        found = torch.autograd.grad(outs, tensors, upstream)
    for a, b in zip((*outs, *found), (*wanted, *gradients), strict=True):
        assert a.dtype == dtype and distance(a, b) < tolerance


def loops(poses, weight, scale, shift, rows, stride, padding, l2, eps):
    """README.md's formulas, a child at a time."""
    images, height, width, types, _ = poses.shape
    parents, kh, kw, _, columns, m = weight.shape
    down, across = ((size + 2 * padding - k) // stride + 1 for size, k in ((height, kh), (width, kw)))
    total = torch.zeros(images, down * across, parents, rows * m, dtype=poses.dtype)
    squares = torch.zeros_like(total)
    for b, y, x, j, k, l, n in torch.cartesian_prod(
        *map(torch.arange, (images, down, across, parents, kh, kw, types))
    ).tolist():
        top, left = y * stride + k - padding, x * stride + l - padding
        if not (0 <= top < height and 0 <= left < width):
            continue
        pair = [i % size for i, size in zip(((k * kw + l) * types + n, j), scale.shape[:2], strict=True)]
        vote = (poses[b, top, left, n].view(rows, columns) @ weight[j, k, l, n]).flatten()
        vote = scale[*pair] * vote + shift[*pair]
        vote = vote / vote.square().sum().clamp_min(eps).sqrt() if l2 else vote
        total[b, y * across + x, j] += vote
        squares[b, y * across + x, j] += vote.square()
    return total, squares


@pytest.mark.parametrize("name", ["conv-padded", "conv-vector"])
@every_flag
def test_equals_loops_over_children(name, per, l2):
    tensors, geometry = inputs(CASES[name], per, torch.float64)
    wanted = loops(*(x.detach() for x in tensors), *geometry, l2, 1e-12)
    for a, b in zip(fm_window_sums(*tensors, *geometry, l2, 1e-12), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@every_flag
def test_the_gradient_is_that_of_the_sums(per, l2):
    tensors, geometry = inputs((1, 3, 4, 1, 2, 2, 2, 2, 2, 1, 1), per, torch.float64)
    assert torch.autograd.gradcheck(lambda *x: fm_window_sums(*x, *geometry, l2, 1e-12), tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_but_once(dtype):
    module, poses = stack("padded", dtype, batch_norm=None)
    (out, *_), grads, _ = outcome(module, poses)
    (truth, *_), true_grads, _ = outcome(twin(module).double(), poses.double())
    eps = torch.finfo(dtype).eps
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), truth, rtol=2 * eps, atol=4 * eps)
    for name, e in true_grads.items():
        found = grads[name]
        assert found is not None and e is not None and found.dtype == dtype
        assert (found.double() - e).abs().max() <= 16 * eps * e.abs().max(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_an_operation_of_torch(dtype):
    tensors, geometry = inputs(CASES["conv-padded"], "pair", dtype)
    utils = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(fm_window_sums, (*tensors, *geometry, True, 1e-12), test_utils=utils)
    upstream = [torch.ones_like(x) for x in fm_window_sums(*tensors, *geometry, True, 1e-12)]
    constants = [x.detach() for x in (*upstream, *tensors)]
    torch.library.opcheck(fm_window_sums_backward, (*constants, *geometry, True, 1e-12))


def test_compiles_whole():
    module, poses = stack("padded", torch.float64)
    compiled = torch.compile(lambda x: module(Capsules(x))[-1].capsules.poses, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(poses), module(Capsules(poses))[-1].capsules.poses)


def test_evaluates_by_running_statistics_and_takes_no_image():
    module, poses = stack("padded", torch.float64)
    module(Capsules(poses))
    check(module.eval(), poses, rtol=1e-9, atol=1e-11)
    empty = poses[:0].requires_grad_()
    parents = module.train()(Capsules(empty))[-1].capsules.poses
    assert parents.shape == (0, 5, 4, 17, 4)
    parents.sum().backward()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same(threads):
    tensors, geometry = inputs(CASES["conv-wide"], "pair", torch.float64)
    wanted, before = fm_window_sums(*tensors, *geometry, True, 1e-12), torch.get_num_threads()
    upstream = [torch.ones_like(x) for x in wanted]
    torch.set_num_threads(threads)
    try:
        outs = fm_window_sums(*tensors, *geometry, True, 1e-12)
        found = [torch.autograd.grad(outs, tensors, upstream, retain_graph=True) for _ in range(2)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for pair in ((outs, wanted), found) for a, b in zip(*pair, strict=True))
    for a, b in zip(found[0], torch.autograd.grad(wanted, tensors, upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"batch_norm": None}])
def test_zero_capsules_and_huge_ones(options):
    module, poses = stack("padded", torch.float32, **options)
    for scale in (0.0, 1e15):
        outs, grads, _ = outcome(module, poses * scale)
        wanted, plain_grads, _ = outcome(twin(module), poses * scale)
        torch.testing.assert_close(outs, wanted, rtol=1e-3, atol=1e-4)
        for name, e in plain_grads.items():
            assert torch.isfinite(grads[name]).all() == torch.isfinite(e).all(), (scale, name)


def test_not_a_number_stays_one_and_in_the_windows_that_see_it():
    module, poses = stack("padded", torch.float32, batch_norm=None)
    poses[1, 0, 0, 2, 1] = torch.nan
    seen = module(Capsules(poses))[-1].capsules.poses.isnan().flatten(3)
    assert seen[1, :2, :2].all() and seen.any(-1).sum() == 4


def test_flops_are_counted():
    """As the plain form's products with W, see `test_cost`."""
    tensors, geometry = inputs(CASES["conv"], "one", torch.float32)
    votes = 2 * (2 * 2 * 3) * (9 * 2 * 3) * (2 * 2 * 2)
    with FlopCounterMode(display=False) as counter:
        total, squares = fm_window_sums(*tensors, *geometry, True, 1e-12)
        (total.sum() + squares.sum()).backward()
    assert counter.get_total_flops() == (3 + 8) * votes


def test_what_it_refuses():
    with pytest.raises(ValueError, match="takes eps from 1e-24, not 1e-30"):
        CapsuleLayer(ConvTransform(2, 3, 4, 4), "fm", "fused", eps=1e-30)


BATCH = 2
VOTES = BATCH * 49 * 288 * 32 * 16 * 4  # bytes


def test_nothing_of_the_votes_size_is_held_or_made():
    torch.manual_seed(0)
    layer = CapsuleLayer(ConvTransform(32, 32, 16, 16, stride=2, matrix=True), "fm")
    poses, norm = torch.randn(BATCH, 16, 16, 32, 16, requires_grad=True), layer.routing.norm
    assert layer.fused

    def fused():
        return layer(Capsules(poses)).capsules.poses

    def naive():
        return fm(conv_votes(poses, layer.transform.weight, 4, 2), norm.weight, norm.bias)[0]

    torch.testing.assert_close(fused().flatten(1, 2), naive(), rtol=1e-3, atol=1e-3)
    total, largest = held(fused)
    assert total <= held(naive)[0] / 20 and largest <= VOTES / 20
    assert largest_allocation(lambda: fused().sum().backward()) <= VOTES / 10


def test_a_training_run_keeps_its_loss_curve():
    torch.manual_seed(0)
    transform = ConvTransform(4, 10, 16, 16, stride=2, matrix=True)
    module, poses = CapsuleStack([CapsuleLayer(transform, "fm")], 1), torch.randn(20, 5, 5, 4, 16)
    labels, curves = torch.arange(20) % 10, []
    for each in (module, twin(module)):
        optimizer = torch.optim.SGD(each.parameters(), 0.3, momentum=0.9)
        losses = []
        for _ in range(20):
            scores = each(Capsules(poses))[-1].capsules.activations.mean((1, 2))
            loss = torch.nn.functional.cross_entropy(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0][-1] < 0.7 * curves[0][0]
    assert curves[0] == pytest.approx(curves[1], rel=2e-3)


@pytest.mark.slow
def test_the_triton_form_equals_the_plain_one():
    script = Path(__file__).parent / "interpreted_fm_windows.py"
    subprocess.run([sys.executable, script], env=os.environ | {"TRITON_INTERPRET": "1"}, check=True, cwd=script.parent)
