"""The Sinkhorn divergence: against POT, against loops, at the extremes, and its KL stand-in."""

import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchcaps.encapnet.sinkhorn import ground_cost, kl_divergence, sinkhorn_divergence, transport_plan

METRIC = {"cosine": "cosine", "l2": "euclidean"}
every_cost = pytest.mark.parametrize("cost", METRIC)


def samples(n=5, m=7, features=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(k, features, generator=generator, dtype=torch.float64).to(dtype) for k in (n, m)]


def loops(x, y, cost, eps, iterations, bias_fix, first="columns"):
    """Eq. 8 to 11 with the kernel itself, not its logarithm."""

    def transport(a, b):
        q = np.zeros((len(a), len(b)))
        for i, j in np.ndindex(q.shape):
            norms = math.sqrt(sum(a[i] ** 2)) * math.sqrt(sum(b[j] ** 2))
            q[i, j] = 1 - sum(a[i] * b[j]) / norms if cost == "cosine" else math.sqrt(sum((a[i] - b[j]) ** 2))
        kernel, rows, columns = np.exp(-q / eps), np.ones(len(a)), np.ones(len(b))
        for step in range(2 * iterations):
            if (step % 2 == 0) == (first == "columns"):
                columns = [1 / len(b) / sum(kernel[i, j] * rows[i] for i in range(len(a))) for j in range(len(b))]
            else:
                rows = [1 / len(a) / sum(kernel[i, j] * columns[j] for j in range(len(b))) for i in range(len(a))]
        return sum(rows[i] * kernel[i, j] * columns[j] * q[i, j] for i, j in np.ndindex(q.shape))

    return 2 * transport(x, y) - transport(x, x) - transport(y, y) if bias_fix else transport(x, y)


@every_cost
@pytest.mark.parametrize("bias_fix", [True, False])
@pytest.mark.parametrize("first", ["columns", "rows"])
@pytest.mark.parametrize(("n", "m"), [(5, 7), (1, 3), (4, 1), (1, 1)])
def test_equals_the_loops_of_the_paper(cost, bias_fix, n, m, first):
    x, y = samples(n, m)
    ours = sinkhorn_divergence(x, y, cost, eps=0.3, iterations=4, bias_fix=bias_fix, first=first)
    wanted = loops(x.numpy(), y.numpy(), cost, 0.3, 4, bias_fix, first)
    np.testing.assert_allclose(ours, wanted, rtol=1e-10, atol=1e-14)


@every_cost
def test_what_an_iteration_scales_last_has_its_sums_and_once_converged_the_order_is_nothing(cost):
    costs = ground_cost(*samples(4, 6), cost)
    plans = {first: transport_plan(costs, 0.1, 2, first) for first in ("columns", "rows")}
    torch.testing.assert_close(plans["columns"].sum(1), torch.full((4,), 1 / 4, dtype=torch.float64))
    torch.testing.assert_close(plans["rows"].sum(0), torch.full((6,), 1 / 6, dtype=torch.float64))
    assert (plans["columns"] - plans["rows"]).abs().max() > 1e-3
    longer = [transport_plan(costs, 0.5, 500, first) for first in ("columns", "rows")]
    torch.testing.assert_close(*longer)


def pot(x, y, cost, eps, iterations):
    return ot.bregman.empirical_sinkhorn_divergence(
        x, y, eps, metric=METRIC[cost], numIterMax=iterations, stopThr=0, warn=False
    )


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 7),
    m=st.integers(1, 7),
    features=st.integers(1, 5),
    cost=st.sampled_from(list(METRIC)),
    eps=st.sampled_from([0.1, 0.3, 1.0]),
    iterations=st.integers(1, 12),
    seed=st.integers(0, 999),
)
def test_is_twice_pots_and_not_clipped_at_zero(n, m, features, cost, eps, iterations, seed):
    x, y = samples(n, m, features, seed)
    ours = sinkhorn_divergence(x, y, cost, eps, iterations).item()
    assert max(ours / 2, 0) == pytest.approx(pot(x.numpy(), y.numpy(), cost, eps, iterations), rel=1e-9, abs=1e-12)


def test_a_divergence_below_zero_is_kept():
    x, y = (torch.tensor([[1.0]] + [[-1.0]] * n, dtype=torch.float64) for n in (3, 4))
    ours = sinkhorn_divergence(x, y, eps=0.3, iterations=1).item()
    assert ours < -1e-6 and pot(x.numpy(), y.numpy(), "cosine", 0.3, 1) == 0


@pytest.mark.parametrize("iterations", [1, 10])
def test_the_gradient_through_the_plan_is_twice_pots(iterations):
    x, y = (z.requires_grad_() for z in samples())
    ours = sinkhorn_divergence(x, y, "l2", 0.5, iterations, through_plan=True)

    def transport(a, b):  # with torch's distances, because POT's have no gradient at 0
        costs = torch.cdist(a, b)
        marginals = (torch.full((len(z),), 1 / len(z), dtype=torch.float64) for z in (a, b))
        return ot.sinkhorn2(*marginals, costs, 0.5, numItermax=iterations, stopThr=0, warn=False)

    theirs = transport(x, y) - 0.5 * transport(x, x) - 0.5 * transport(y, y)
    for a, b in zip(torch.autograd.grad(ours, [x, y]), torch.autograd.grad(theirs, [x, y]), strict=True):
        torch.testing.assert_close(a, 2 * b, rtol=1e-9, atol=1e-12)


@every_cost
def test_without_the_gradient_through_the_plan_it_is_that_of_the_costs_under_a_constant_plan(cost):
    x, y = (z.requires_grad_() for z in samples())
    total = 0.0
    for sign, a, b in ((2, x, y), (-1, x, x), (-1, y, y)):
        costs = ground_cost(a, b, cost)
        plan = ot.sinkhorn(
            np.full(len(a), 1 / len(a)), np.full(len(b), 1 / len(b)), costs.detach().numpy(), 0.2, numItermax=6,
            stopThr=0, warn=False,
        )  # fmt: skip
        total = total + sign * (torch.from_numpy(plan) * costs).sum()
    ours = sinkhorn_divergence(x, y, cost, 0.2, 6)
    through = sinkhorn_divergence(x, y, cost, 0.2, 6, through_plan=True)
    assert ours.item() == pytest.approx(total.item(), rel=1e-10) and ours.item() == through.item()
    for a, b, c in zip(*(torch.autograd.grad(z, [x, y]) for z in (ours, total, through)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(a, c, rtol=1e-3)


@every_cost
def test_gradients(cost):
    x, y = (z.requires_grad_() for z in samples(3, 4))
    assert torch.autograd.gradcheck(lambda x, y: sinkhorn_divergence(x, y, cost, through_plan=True), (x, y))


@every_cost
def test_a_plan_has_its_marginals(cost):
    x, y = samples(4, 6)
    plan = transport_plan(ground_cost(x, y, cost), 0.1, 2000)
    torch.testing.assert_close(plan.sum(1), torch.full((4,), 1 / 4, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(0), torch.full((6,), 1 / 6, dtype=torch.float64), rtol=1e-6, atol=0)


@every_cost
def test_it_is_zero_for_equal_batches_in_any_order_and_symmetric_once_converged(cost):
    x, y = samples(6, 6)
    order = torch.randperm(6)
    assert sinkhorn_divergence(x, x[order], cost, iterations=1000).abs() < 1e-8
    forth, back = (sinkhorn_divergence(*pair, cost, eps=0.5, iterations=500) for pair in ((x, y), (y, x)))
    torch.testing.assert_close(forth, back)
    moved = sinkhorn_divergence(x[order], y, cost, eps=0.5, iterations=500)
    torch.testing.assert_close(forth, moved)


@every_cost
@pytest.mark.parametrize("through_plan", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["relu", "zero", "identical", "tiny", "huge"])
@pytest.mark.parametrize("batch", [1, 7])
def test_stays_finite_with_the_papers_eps(cost, through_plan, dtype, kind, batch):
    """eps 0.1; half types are autocast; "huge" is 1e4, and 1e2 in float16."""
    x, y = (z.relu() for z in samples(batch, batch, 64, dtype=torch.float32))
    scale = {"relu": 1.0, "zero": 0.0, "identical": 0.0, "tiny": 1e-6, "huge": 1e2 if dtype == torch.float16 else 1e4}
    x, y = ((scale[kind] * z + (kind == "identical")).requires_grad_() for z in (x, y))
    with torch.autocast("cpu", dtype=torch.bfloat16 if dtype == torch.float32 else dtype, enabled=dtype.itemsize == 2):
        halves = (z.to(dtype) for z in (x, y))
        loss = sinkhorn_divergence(*halves, cost, through_plan=through_plan)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert x.grad.isfinite().all() and y.grad.isfinite().all()
    if kind == "zero":
        assert x.grad.abs().max() <= 10


def test_the_kernel_itself_would_underflow():
    """Why the log domain: with the l2 cost exp(-Q / 0.1) is zero in half precision, and zeros cannot be scaled."""
    x, y = samples(5, 5, 64, dtype=torch.float32)
    kernel = (-ground_cost(x, y, "l2") / 0.1).exp().half()
    assert (kernel == 0).all()
    exact = sinkhorn_divergence(x.double(), y.double(), "l2").item()
    assert sinkhorn_divergence(x, y, "l2").item() == pytest.approx(exact, rel=1e-5) and exact > 0


def test_kl_is_the_mean_over_samples_of_softmaxed_features():
    q, p = samples(3, 3, 4)
    wanted = np.mean([
        sum(a * math.log(a / b) for a, b in zip(true.softmax(0).tolist(), made.softmax(0).tolist(), strict=True))
        for made, true in zip(q, p, strict=True)
    ])  # fmt: skip
    assert kl_divergence(q, p).item() == pytest.approx(wanted, rel=1e-10)
    assert kl_divergence(p, p).item() == pytest.approx(0, abs=1e-12)
    assert torch.autograd.gradcheck(kl_divergence, (q.requires_grad_(), p.requires_grad_()))
    assert kl_divergence(1e4 * q.half(), -1e4 * p.half()).isfinite()


@every_cost
def test_compiles_without_a_break(cost):
    torch.compiler.reset()
    x, y = (z.requires_grad_() for z in samples(dtype=torch.float32))
    compiled = torch.compile(sinkhorn_divergence, fullgraph=True, backend="aot_eager")
    losses = [f(x, y, cost, through_plan=True) for f in (sinkhorn_divergence, compiled)]
    torch.testing.assert_close(*losses)
    for a, b in zip(*(torch.autograd.grad(loss, [x, y]) for loss in losses), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: sinkhorn_divergence(x, y, "l1"), "'l1'"),
        (lambda x, y: sinkhorn_divergence(x, y, eps=0.0), "eps is 0.0"),
        (lambda x, y: sinkhorn_divergence(x, y, first="row"), "'row'"),
        (lambda x, y: sinkhorn_divergence(x, y, iterations=0), "iterations 0"),
        (lambda x, y: sinkhorn_divergence(x, y[:, 1:]), "(7, 2)"),
        (lambda x, y: sinkhorn_divergence(x[:0], y), "(0, 3)"),
        (lambda x, y: sinkhorn_divergence(x[0], y), "(3,)"),
        (kl_divergence, "(5, 3) and (7, 3)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError) as error:
        call(*samples())
    assert message in str(error.value)


@every_cost
@pytest.mark.parametrize("through_plan", [False, True])
def test_is_counted_on_the_meta_device(cost, through_plan):
    """Which has no autocast to be kept out."""
    x, y = (torch.randn(n, 3, device="meta", requires_grad=True) for n in (5, 7))
    found = sinkhorn_divergence(x, y, cost, through_plan=through_plan)
    assert found.device.type == "meta" and found.shape == () and found.dtype == torch.float32
    assert [each.shape for each in torch.autograd.grad(found, (x, y))] == [x.shape, y.shape]
    with torch.autocast("cpu", torch.bfloat16):
        assert sinkhorn_divergence(x, y, cost).dtype == torch.float32
