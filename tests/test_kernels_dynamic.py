"""The fused step of dynamic routing against the plain one."""

import pytest
import torch
from fused import SIZES, check, held, largest_allocation, memory_of_nan, outcome, stack, twin
from naive import dynamic, linear_votes
from torch.utils.flop_counter import FlopCounterMode

import torchcaps.kernels.dynamic.step  # noqa: F401
from torchcaps.capsules import Capsules
from torchcaps.kernels.dynamic.op import dynamic_step
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, LinearTransform

VARIANTS = [
    ("dynamic", {}),
    ("dynamic", {"gradients": "last"}),
    ("dynamic", {"start": "learnt"}),
    ("dynamic", {"start": "random"}),
    ("dynamic", {"start": "learnt", "gradients": "last"}),
    ("xnidr", {"gradients": "last"}),
    ("xnodr", {}),
    ("xnodr", {"threshold": "midpoint"}),
    ("xnidr", {}),
    ("xnidr", {"start": "learnt"}),
    ("xnodr-xnidr", {}),
    ("dynamic", {"bias": True, "gradients": "last"}),
    ("xnodr", {"bias": True}),
    ("xnidr", {"bias": True}),
    ("xnodr-xnidr", {"bias": True}),
    ("xnodr-xnidr", {"gradients": "last"}),
]
every_variant = pytest.mark.parametrize(("routing", "options"), VARIANTS, ids=lambda x: str(x) if x else "")


def refused(size, routing):
    """Whether there is no such kernel: of two columns a sum of signs is 0 for all children at once too often."""
    if (size, routing) != ("wide", "xnodr-xnidr"):
        return False
    with pytest.raises(ValueError, match="at least 3 columns"):
        stack(size, routing, torch.float64)
    return True


@every_variant
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_plain_step_in_float64(size, routing, options):
    if refused(size, routing):
        return
    with memory_of_nan():
        check(*stack(size, routing, torch.float64, **options), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("routing", ["dynamic", "xnidr", "xnodr-xnidr"])
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_plain_step_in_float32(size, routing):
    if refused(size, routing):
        return
    with memory_of_nan():
        check(*stack(size, routing, torch.float32), rtol=1e-4, atol=1e-5)


# children, parents, poses and parents' poses
WINDOWS = {
    "conv": ((2, 3, 4, 6), {"stride": 2}),
    "padded": ((3, 17, 4, 4), {"padding": 1, "matrix": True}),
    "wide": ((2, 33, 9, 9), {"padding": 1, "stride": 2, "matrix": True}),
    "one": ((1, 1, 3, 2), {"kernel": 1}),
}


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float64, 1e-9, 1e-11), (torch.float32, 1e-4, 1e-5)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("routing", ["dynamic", "xnodr", "xnidr", "xnodr-xnidr"])
@pytest.mark.parametrize("windows", WINDOWS)
def test_windows_equal_the_plain_step(windows, routing, bias, dtype, rtol, atol):
    torch.manual_seed(0)
    (children, parents, pose, parent_pose), options = WINDOWS[windows]
    transform = ConvTransform(children, parents, pose, parent_pose, **options)
    if (windows, routing) == ("padded", "xnodr-xnidr"):
        with pytest.raises(ValueError, match="at least 3 columns"):
            CapsuleLayer(transform, routing, "fused", bias=bias)
        return
    module = CapsuleStack([CapsuleLayer(transform, routing, "fused", bias=bias)], 3).to(dtype)
    for parameter in module.layers[0].routing.parameters():
        torch.nn.init.normal_(parameter, mean=0.3, std=0.5)
    poses = torch.randn(3, 5, 4, children, pose, dtype=dtype)
    with memory_of_nan():
        check(module, poses, rtol=rtol, atol=atol)


@pytest.mark.parametrize("routing", ["xnidr", "xnodr-xnidr"])
def test_windows_that_see_little_and_batches_without_an_image(routing):
    torch.manual_seed(0)
    module = CapsuleStack([CapsuleLayer(ConvTransform(2, 3, 9, 4, padding=3), routing, "fused")], 3)
    check(module, torch.randn(2, 1, 2, 2, 9), rtol=1e-4, atol=1e-5)  # the windows in the corners see nothing
    empty = torch.randn(0, 3, 4, 2, 9, requires_grad=True)
    parents = module(Capsules(empty))[-1].capsules.poses
    assert parents.shape == (0, 7, 8, 3, 4)
    parents.sum().backward()


@pytest.mark.parametrize("routing", ["dynamic", "xnidr", "xnodr-xnidr"])
def test_windows_hold_no_votes(routing):
    torch.manual_seed(0)
    transform = ConvTransform(32, 32, 16, 16, stride=2, matrix=True)
    module = CapsuleStack([CapsuleLayer(transform, routing)], 3)
    poses = torch.randn(2, 16, 16, 32, 16, requires_grad=True)
    votes = 2 * 49 * 9 * 32 * 32 * 16 * 4
    assert module.layers[0].fused
    assert held(lambda x: module(Capsules(x))[-1].capsules.poses, poses)[1] < votes / 8
    assert largest_allocation(lambda: module(Capsules(poses))[-1].capsules.poses.sum().backward()) < votes / 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_but_once(dtype):
    module, poses = stack("vector", "dynamic", dtype)
    (out, *_), grads, _ = outcome(module, poses)
    (truth, *_), true_grads, _ = outcome(twin(module).double(), poses.double())
    eps = torch.finfo(dtype).eps
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), truth, rtol=2 * eps, atol=4 * eps)
    for name, e in true_grads.items():
        found = grads[name]
        assert found is not None and e is not None and found.dtype == dtype
        assert (found.double() - e).abs().max() <= 16 * eps * e.abs().max(), name


def operands(b, i, rows, c, j, m, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = ((b, i, rows * c), (j, i, c, m), (b, j, rows * m), (i, j))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def test_the_gradient_is_that_of_the_sums():
    poses, weight, state, initial = operands(2, 3, 2, 2, 3, 2)
    assert torch.autograd.gradcheck(lambda *x: dynamic_step(*x, False, False, False), (poses, weight, state, initial))
    assert torch.autograd.gradcheck(lambda *x: dynamic_step(*x, None, None, False, False, False), (poses, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_an_operation_of_torch(dtype):
    poses, weight, state, initial = operands(3, 5, 1, 4, 3, 5, dtype)
    utils = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for inputs in (
        (state, initial, True, True, False),
        (state, None, False, False, True),
        (None, None, False, False, False),
    ):
        torch.library.opcheck(dynamic_step, (poses, weight, *inputs), test_utils=utils)


def test_compiles_whole():
    module, poses = stack("vector", "dynamic", torch.float64)
    compiled = torch.compile(lambda x: module(Capsules(x))[-1].capsules.poses, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(poses), module(Capsules(poses))[-1].capsules.poses)


def test_autocast_gives_its_type_from_sums_in_float32():
    module, poses = stack("vector", "dynamic", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        half = module(Capsules(poses))[-1].capsules.poses
        assert half.dtype == twin(module)(Capsules(poses))[-1].capsules.poses.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), module(Capsules(poses))[-1].capsules.poses, rtol=0.01, atol=0.01)


def test_zero_capsules_and_huge_ones():
    module, poses = stack("vector", "dynamic", torch.float32)
    for scale in (0.0, 1e15):
        outs, grads, _ = outcome(module, poses * scale)
        plain, plain_grads, _ = outcome(twin(module), poses * scale)
        torch.testing.assert_close(outs, plain, rtol=1e-4, atol=1e-5)
        for name, e in plain_grads.items():
            assert torch.isfinite(grads[name]).all() == torch.isfinite(e).all(), (scale, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_binary_sums_that_cancel_are_zero(dtype):
    """Their sign is -1 by rule: what rounding left of them would make it chance."""
    module, poses = stack("vector", "xnodr-xnidr", dtype)
    votes = module.layers[0].votes(Capsules(poses)).binarized()
    u, w = votes.capsules.poses, votes.weight
    exact = torch.einsum("bic,jicm->bijm", u.sign(), w.sign()) * u[..., 0].abs()[:, :, None, None]
    seen = torch.where(exact > 0, 1.0, -1.0) * (exact * w[:, :, 0].abs().transpose(0, 1)).abs().mean(-1, keepdim=True)
    assert (exact == 0).float().mean() > 0.1
    state = torch.randn(len(u), w.shape[0], w.shape[-1], dtype=dtype)
    coupling = torch.einsum("bijm,bjm->bij", seen, state).softmax(-1)
    votes = exact * w[:, :, 0].abs().transpose(0, 1)
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-11}
    expected = torch.einsum("bij,bijm->bjm", coupling, votes)
    torch.testing.assert_close(dynamic_step(u, w, state, None, True, True, False), expected, **close)


def test_not_a_number_stays_one():
    module, poses = stack("vector", "dynamic", torch.float32)
    poses[4, 2, 1] = torch.nan
    seen = module(Capsules(poses))[-1].capsules.poses.isnan().flatten(1)
    assert seen[4].all() and not seen[[0, 1, 2, 3, 5]].any()


def test_plain_and_fused_steps_may_be_mixed():
    module, poses = stack("odd", "dynamic", torch.float64)
    (layer,), plain = module.layers, twin(module).layers[0]
    votes = layer.votes(Capsules(poses))
    state = None
    for t, each in enumerate((layer, plain, layer)):
        state = each.step(votes, state, t).state
    torch.testing.assert_close(state, module(Capsules(poses))[-1].state)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same(threads):
    module, poses = stack("odd", "dynamic", torch.float64)
    expected, before = outcome(module, poses), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.testing.assert_close(outcome(module, poses), expected)
    finally:
        torch.set_num_threads(before)


@every_variant
def test_few_images_equal_the_plain_step_too(routing, options):
    """Whose votes are made and kept, since they are smaller than the weights."""
    module, poses = stack("vector", routing, torch.float64, **options)
    check(module, poses[:4], rtol=1e-9, atol=1e-11)


BATCH, VOTES = 32, 32 * 1152 * 10 * 16 * 4  # images, and bytes of their votes


def papers_layer(routing):
    torch.manual_seed(0)
    module = CapsuleStack([CapsuleLayer(LinearTransform(1152, 10, 8, 16, std=0.1), routing)], 3)
    poses = torch.randn(BATCH, 1152, 8, requires_grad=True)
    return module, poses, lambda x: module(Capsules(x))[-1].capsules.poses


@pytest.mark.parametrize("routing", ["dynamic", "xnodr", "xnidr", "xnodr-xnidr"])
def test_the_papers_layer_is_fused(routing):
    assert papers_layer(routing)[0].layers[0].fused


@pytest.mark.parametrize("routing", ["dynamic", "xnidr"])
def test_nothing_of_the_votes_size_exists(routing):
    module, poses, function = papers_layer(routing)
    weight = module.layers[0].transform.weight
    total, largest = held(function, poses)
    allowed = sum(x.untyped_storage().nbytes() for x in (poses, weight))
    assert total - allowed <= held(lambda x: dynamic(linear_votes(x, weight), 3), poses)[0] / 20 and largest < VOTES / 2
    assert largest_allocation(lambda: function(poses).sum().backward()) <= VOTES / 2


def test_what_it_refuses():
    with pytest.raises(ValueError, match="takes over 'parents', not 'children'"):
        CapsuleLayer(LinearTransform(4, 3, 2, 2), "dynamic", "fused", over="children")
    for options, reason in (
        ({"gradients": "last"}, "takes gradients 'all'"),
        ({"start": "learnt"}, "no initial logits"),
    ):
        for routing in ("dynamic", "xnidr", "xnodr-xnidr"):
            with pytest.raises(ValueError, match=reason):
                CapsuleLayer(ConvTransform(2, 3, 4, 4), routing, "fused", **options)
    with pytest.raises(ValueError, match="no kernel for Discriminative"):
        CapsuleLayer(LinearTransform(4, 3, 2, 2), "discriminative", "fused")


def test_flops_are_counted():
    """As the plain form's products with W, see `test_cost`."""
    poses, weight, state, _ = operands(3, 5, 1, 4, 3, 5)
    with FlopCounterMode(display=False) as counter:
        dynamic_step(poses, weight, None, None, False, False, False)
    assert counter.get_total_flops() == 2 * 3 * 5 * 4 * 3 * 5
    with FlopCounterMode(display=False) as counter:
        dynamic_step(poses, weight, state, None, False, False, False).sum().backward()
    assert counter.get_total_flops() == (2 + 5) * (2 * 3 * 5 * 4 * 3 * 5)


def test_a_training_run_keeps_its_loss_curve():
    module, poses = stack("vector", "dynamic", torch.float32)
    curves = []
    for each in (module, twin(module)):
        optimizer = torch.optim.Adam(each.parameters(), 1e-2)
        losses = []
        for _ in range(20):
            loss = (each(Capsules(poses))[-1].capsules.poses.norm(dim=-1)[:, 0] - 0.9).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0][-1] < 0.5 * curves[0][0]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)
