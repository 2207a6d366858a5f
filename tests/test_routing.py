"""Algorithms x properties: each routing against its oracle, and what must hold for all of them."""

import copy

import numpy as np
import oracles
import pytest
import torch
from layers import CASES, children, layer, seen

from torchcaps.capsules import Capsules, lengths, squash
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, LinearTransform
from torchcaps.routing import create_routing, list_routings, routing_class

SPECS = {spec.name: spec for spec in list_routings()}
VARIANTS = [
    ("uniform", {}),
    ("dynamic", {}),
    ("dynamic", {"over": "children"}),
    ("em", {"temperature": 0.5}),
    ("em", {"temperature": 0.5, "scope": "window"}),
    ("inverted-attention", {}),
    ("inverted-attention", {"scaled": False, "scope": "image"}),
    ("discriminative", {}),
]
every_variant = pytest.mark.parametrize(("routing", "options"), VARIANTS, ids=lambda x: str(x) if x else "")
every_case = pytest.mark.parametrize("name", CASES)


def oracle(module, capsules, iterations):
    """Poses [b, p, j, d] and activations [b, p, j] or None of a layer by the loops of its paper."""
    truth, routing = seen(module.transform, capsules), module.routing
    get = {name: parameter.detach().numpy() for name, parameter in routing.named_parameters()}
    match routing.spec.name:
        case "uniform":
            return oracles.uniform(truth), None
        case "dynamic":
            return oracles.dynamic(truth, iterations, routing.over), None
        case "em":
            return oracles.em(
                truth, iterations, get["beta_u"], get["beta_a"], routing.scope, routing.temperature, routing.eps
            )
        case "inverted-attention":
            parents = np.zeros((truth.shape[0], truth.shape[1], truth.shape[3], truth.shape[4]))
            for _ in range(iterations):
                parents = oracles.inverted_attention_step(
                    truth, parents, get["norm.weight"], get["norm.bias"], routing.scale, routing.scope
                )
            return parents, None
        case "discriminative":
            return oracles.discriminative_parents(truth, get["coefficient"]), None
    raise AssertionError(f"routing {routing.spec.name} has no oracle: write one")


def positions_flat(x, space):
    """[b, *space, ...] -> [b, p, ...]."""
    return x.flatten(1, 2) if space else x.unsqueeze(1)


def test_every_routing_is_in_the_table():
    assert {name for name, _ in VARIANTS} == set(SPECS)


@every_case
@every_variant
def test_equals_the_loops_of_the_paper(name, routing, options):
    module, capsules = layer(name, routing, **options), children(name)
    for iterations in (1, 3) if SPECS[routing].iterative else (1,):
        parents = module(capsules, iterations).capsules
        poses, activations = oracle(module, capsules, iterations)
        space = module.votes(capsules).space
        np.testing.assert_allclose(positions_flat(parents.poses, space).detach(), poses, rtol=1e-10, atol=1e-13)
        assert (parents.activations is not None) == SPECS[routing].gives_activations
        if activations is not None:
            np.testing.assert_allclose(
                positions_flat(parents.activations, space).detach(), activations, rtol=1e-10, atol=1e-13
            )


@pytest.mark.parametrize("name", ["linear-vector", "linear-matrix", "conv-matrix", "conv-padded"])
@every_variant
def test_gradients(name, routing, options):
    module, capsules = layer(name, routing, **options), children(name)
    names = [key for key, _ in module.named_parameters()]

    def run(poses, activations, *parameters):
        state = dict(zip(names, parameters, strict=True))
        step = torch.func.functional_call(module, state, (Capsules(poses, activations), 2))
        return tuple(x for x in step.capsules if x is not None)

    inputs = [x.clone().requires_grad_() for x in (*capsules, *(p.detach() for p in module.parameters()))]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True, atol=1e-6)


@pytest.mark.parametrize("name", ["linear-vector", "conv-padded"])
@every_variant
@pytest.mark.parametrize("kind", ["zero", "identical", "tiny", "huge"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_stays_finite(name, routing, options, kind, dtype):
    """Zero capsules, identical ones, poses of 1e-6 and 1e4; bfloat16 is autocast, as in training."""
    module, capsules = layer(name, routing, dtype=torch.float32, **options), children(name, dtype=torch.float32)
    poses = {
        "zero": torch.zeros_like(capsules.poses),
        "identical": torch.ones_like(capsules.poses),
        "tiny": 1e-6 * capsules.poses,
        "huge": 1e4 * capsules.poses,
    }[kind].requires_grad_()
    activations = None if capsules.activations is None else capsules.activations.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        parents = module(Capsules(poses, activations), 3).capsules
    assert all(x.isfinite().all() for x in parents if x is not None)
    sum(x.float().sum() for x in parents if x is not None).backward()
    gradients = [poses.grad, *(p.grad for p in module.parameters() if p.grad is not None)]
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", ["linear-vector", "linear-matrix"])
@every_variant
def test_the_order_of_children_and_of_parents_does_not_matter(name, routing, options):
    module, capsules = layer(name, routing, **options), children(name)
    before = module(capsules, 3).capsules
    i, j = module.transform.sizes.children, module.transform.sizes.parents
    torch.manual_seed(2)
    order, parents = torch.randperm(i), torch.randperm(j)
    moved = copy.deepcopy(module)
    moved.transform.weight.data = module.transform.weight.data[parents][:, order]
    for key, parameter in moved.routing.named_parameters():
        if key == "coefficient":
            parameter.data = parameter.data[order][:, parents]
        elif key.startswith("beta"):
            parameter.data = parameter.data[parents]
    after = moved(Capsules(capsules.poses[:, order], capsules.activations[:, order]), 3).capsules
    for a, b in zip(before, after, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a[:, parents], b, rtol=1e-10, atol=1e-12)


@every_variant
def test_compiles_without_a_break(routing, options):
    torch.compiler.reset()
    for name in ("linear-vector", "conv-padded"):
        module, capsules = layer(name, routing, **options), children(name)
        stack = CapsuleStack([module], 2)
        compiled = torch.compile(stack, fullgraph=True, backend="aot_eager")
        eager, fast = stack(capsules)[-1].capsules.poses, compiled(capsules)[-1].capsules.poses
        torch.testing.assert_close(fast, eager, rtol=1e-10, atol=1e-12)
        gradients = [torch.autograd.grad(y.square().sum(), list(stack.parameters()), allow_unused=True)
                     for y in (eager, fast)]  # fmt: skip
        for a, b in zip(*gradients, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_dynamic_with_one_iteration_is_uniform():
    capsules = children("linear-vector")
    a, b = layer("linear-vector", "dynamic"), layer("linear-vector", "uniform")
    assert torch.equal(a(capsules, 1).capsules.poses, b(capsules).capsules.poses)


def test_dynamic_can_take_gradients_through_the_last_iteration_only():
    """The forward is the same; the gradient is that of fixed couplings."""
    capsules = children("linear-vector")
    module, last = layer("linear-vector", "dynamic"), layer("linear-vector", "dynamic", gradients="last")
    step = last(capsules, 3)
    assert torch.equal(step.capsules.poses, module(capsules, 3).capsules.poses)
    fixed = squash(last.votes(capsules).combine(step.coupling.detach()))
    weight = last.transform.weight
    a, b = (torch.autograd.grad(y.square().sum(), weight)[0] for y in (step.capsules.poses, fixed))
    torch.testing.assert_close(a, b)
    full = torch.autograd.grad(module(capsules, 3).capsules.poses.square().sum(), module.transform.weight)[0]
    assert not torch.allclose(full, a)


def test_em_heeds_the_activations_of_its_children():
    module, capsules = layer("conv-matrix", "em", temperature=0.5), children("conv-matrix")
    quiet = capsules._replace(activations=torch.where(torch.arange(2) == 0, 1e-9, capsules.activations))
    a, b = module(capsules, 2).capsules, module(quiet, 2).capsules
    assert (a.poses - b.poses).abs().max() > 0.1 and (a.activations - b.activations).abs().max() > 0.01
    with pytest.raises(ValueError, match="needs activations"):
        module(Capsules(capsules.poses), 2)


def attention_stack(iterations, schedule):
    """Two convolutional layers and a linear one, on 7x6 positions of 2 capsules of 2x2."""
    torch.manual_seed(0)
    transforms = [
        ConvTransform(2, 3, 4, 4, kernel=3, stride=2, matrix=True),  # 7x6 -> 3x2
        ConvTransform(3, 2, 4, 4, kernel=2, stride=1, matrix=True),  # 3x2 -> 2x1
        LinearTransform(4, 3, 4, 4, matrix=True),
    ]
    stack = CapsuleStack([CapsuleLayer(t, "inverted-attention") for t in transforms], iterations, schedule).double()
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter, mean=0.2, std=0.7)
    return stack, Capsules(torch.randn(2, 7, 6, 2, 4, dtype=torch.float64))


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_concurrent_attention_equals_procedure_2(iterations):
    stack, primary = attention_stack(iterations, "concurrent")
    spaces = [(7, 6), (3, 2), (2, 1), ()]

    def attend(level, below, parents):
        module = stack.layers[level]
        truth = seen(module.transform, Capsules(torch.from_numpy(below)))
        if parents is None:
            parents = np.zeros((truth.shape[0], truth.shape[1], truth.shape[3], truth.shape[4]))
        gain, bias = (x.detach().numpy() for x in (module.routing.norm.weight, module.routing.norm.bias))
        return oracles.inverted_attention_step(truth, parents, gain, bias, module.routing.scale)

    def placed(parents, level):
        return parents.reshape(len(parents), *spaces[level + 1], *parents.shape[2:]) if level < 2 else parents

    poses = [primary.poses.numpy()]
    parents: list = []
    for level in range(3):
        parents.append(attend(level, poses[level], None))
        poses.append(placed(parents[level], level))
    for _ in range(iterations - 1):
        parents = [attend(level, poses[level], parents[level]) for level in range(3)]
        poses = [poses[0], *(placed(parents[level], level) for level in range(3))]
    np.testing.assert_allclose(stack(primary)[-1].capsules.poses.detach(), poses[3][:, 0], rtol=1e-10, atol=1e-12)


def test_concurrent_stack_leaves_out_the_steps_that_reach_nothing():
    stack, primary = attention_stack(2, "concurrent")
    assert stack.plan() == [(0, 0), (1, 0), (2, 0), (2, 1)]
    stack.iterations = 4
    assert stack.plan() == [(0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (0, 1), (2, 2), (1, 2), (2, 3)]
    visited = []
    stack(primary, visit=lambda level, t, step: visited.append((level, t)))
    assert visited == stack.plan()
    single, _ = attention_stack(2, "sequential")
    assert single.plan() == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("name", ["linear-vector", "linear-matrix"])
def test_a_step_on_the_discriminative_objective_equals_the_papers_update(name, norm):
    module, capsules = layer(name, "discriminative", norm=norm, penalty_weight=0.01), children(name)
    stack, coefficient = CapsuleStack([module]), module.routing.coefficient
    torch.manual_seed(3)
    targets = torch.randint(0, 2, (len(capsules.poses), module.transform.sizes.parents)).double()
    truth = seen(module.transform, capsules)
    wanted = oracles.discriminative_step(
        truth, coefficient.detach().numpy(), targets.numpy(), gamma=0.01, weight=0.01, norm=norm
    )
    optimizer = torch.optim.SGD(stack.coefficients(), lr=0.01)
    loss = -stack.objective(stack(capsules), targets)
    (coefficient.grad,) = torch.autograd.grad(loss, stack.coefficients())
    optimizer.step()
    np.testing.assert_allclose(coefficient.detach(), wanted, rtol=1e-10)


def test_hidden_coefficients_take_their_gradient_through_the_layers_above():
    """Section III-C: the class layer's objective, differentiated into every layer (here by finite differences)."""
    torch.manual_seed(0)
    hidden = CapsuleLayer(LinearTransform(4, 3, 2, 3), "discriminative")
    stack = CapsuleStack([hidden, CapsuleLayer(LinearTransform(3, 2, 3, 2), "discriminative")]).double()
    capsules, targets = Capsules(torch.randn(5, 4, 2, dtype=torch.float64)), torch.eye(2).double()[[0, 1, 1, 0, 1]]
    assert len(stack.coefficients()) == 2

    def goal(coefficient):
        with torch.no_grad():
            hidden.routing.coefficient.copy_(coefficient)
        return stack.objective(stack(capsules), targets)

    start = hidden.routing.coefficient.detach().clone()
    (gradient,) = torch.autograd.grad(goal(start), [hidden.routing.coefficient])
    for index in [(0, 0), (3, 2)]:
        nudge = torch.zeros_like(start)
        nudge[index] = 1e-5
        slope = (goal(start + nudge) - goal(start - nudge)).item() / 2e-5
        assert gradient[index].item() == pytest.approx(slope, rel=1e-6)
        assert abs(slope) > 1e-6


def test_state_dict_round_trip_and_deep_copy():
    for routing, options in VARIANTS:
        module, capsules = layer("conv-matrix", routing, **options), children("conv-matrix")
        fresh = layer("conv-matrix", routing, seed=9, **options)
        wanted = module(capsules, 2).capsules.poses
        assert not torch.equal(fresh(capsules, 2).capsules.poses, wanted)
        fresh.load_state_dict(module.state_dict())
        assert torch.equal(fresh(capsules, 2).capsules.poses, wanted)
        assert torch.equal(copy.deepcopy(module)(capsules, 2).capsules.poses, wanted)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_routing("dynamik", 2, 2, 2), "nearest is 'dynamic'"),
        (lambda: create_routing("dynamic", 2, 2, 2, sharpness=3), "sharpness"),
        (lambda: create_routing("dynamic", 2, 0, 2), "0 parents"),
        (lambda: create_routing("dynamic", 2, 2, 2, over="both"), "'both'"),
        (lambda: create_routing("dynamic", 2, 2, 2, gradients="none"), "'none'"),
        (lambda: create_routing("em", 2, 2, 2, scope="row"), "'row'"),
        (lambda: create_routing("inverted-attention", 2, 2, 2, scope="row"), "'row'"),
        (lambda: create_routing("discriminative", 2, 2, 2, norm="l3"), "'l3'"),
        (lambda: create_routing("discriminative", 2, 2, 2, initial=0.0), "fixed point"),
        (lambda: create_routing("discriminative", 2, 2, 2, penalty_weight=-1.0), "-1.0"),
        (lambda: LinearTransform(2, 2, 8, 16, matrix=True), "8 -> 16"),
        (lambda: LinearTransform(2, 2, 16, 18, matrix=True), "16 -> 18"),
        (lambda: LinearTransform(2, 2, 0, 16), "0 and 16"),
        (lambda: LinearTransform(0, 2, 8, 16), "(0,)"),
        (lambda: ConvTransform(2, 2, 4, 4, stride=0), "stride is 0"),
        (lambda: ConvTransform(2, 2, 4, 4, kernel=5)(Capsules(torch.ones(1, 3, 4, 2, 4))), "3x4 positions"),
        (lambda: CapsuleStack([]), "0 layers"),
        (lambda: CapsuleStack([layer("linear-vector", "dynamic")], 0), "iterations is 0"),
        (lambda: CapsuleStack([layer("linear-vector", "dynamic")], 1, "parallel"), "'parallel'"),
        (lambda: CapsuleLayer(LinearTransform(2, 2, 3, 3), create_routing("uniform", 2, 3, 3)), "built for"),
        (lambda: layer("conv-padded", "dynamic").votes(children("conv-padded")).compete(None, "children", "image"),
         "within a window"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)


def test_specs_are_complete():
    for name, spec in SPECS.items():
        assert routing_class(name).__doc__ and spec.paper and spec.time and spec.memory
        assert bool(create_routing(name, 3, 2, 4).coefficients()) == spec.objective


def test_squash_and_lengths():
    poses = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-20, 4e-20]], dtype=torch.float64, requires_grad=True)
    out = squash(poses)
    torch.testing.assert_close(out[0], torch.tensor([3.0, 4.0], dtype=torch.float64) / 5 * 25 / 26)
    assert out[1:].abs().max() < 1e-6
    (gradient,) = torch.autograd.grad(out.sum() + lengths(poses).sum(), poses)
    assert gradient.isfinite().all()
    half = squash(torch.full((16,), 200.0, dtype=torch.float16))
    assert half.dtype == torch.float16 and abs(half.float().norm() - 1) < 1e-2
