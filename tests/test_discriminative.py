"""Discriminative routing: the paper's update, hidden layers, proximal steps, and folding for inference."""

import numpy as np
import oracles
import pytest
import torch
from layers import PLACED, children, layer, seen

from torchcaps.capsules import Capsules, squash
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, LinearTransform
from torchcaps.routing import Routing, Spec, create_routing
from torchcaps.routing.coefficients import follow_steps, warn_of_collapse
from torchcaps.routing.discriminative import Discriminative
from torchcaps.routing.interface import Sizes


@pytest.mark.parametrize(("norm", "absent"), [("l1", 1.0), ("l2", 1.0), ("rows", 1.0), ("l2", 0.25)])
@pytest.mark.parametrize("name", ["linear-vector", "linear-matrix"])
def test_a_step_on_the_discriminative_objective_equals_the_papers_update(name, norm, absent):
    module = layer(name, "discriminative", norm=norm, penalty_weight=0.1, absent_weight=absent)
    capsules = children(name)
    stack, coefficient = CapsuleStack([module]), module.routing.coefficient
    torch.manual_seed(3)
    targets = torch.randint(0, 2, (len(capsules.poses), module.transform.sizes.parents)).double()
    truth = seen(module.transform, capsules)
    gamma = 0.01 / len(targets)  # of the paper's sum
    wanted = oracles.discriminative_step(
        truth, coefficient.detach().numpy(), targets.numpy(), gamma, weight=0.1, norm=norm, absent=absent
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


def test_shares_of_a_batch_ascend_what_the_whole_one_does():
    """As processes do: the mean of their gradients, of which each knows how many images all have together."""
    stack, capsules = (
        CapsuleStack([layer("linear-vector", "discriminative", penalty_weight=2.0)]),
        children("linear-vector"),
    )
    poses, targets, goal = capsules.poses[:2], torch.eye(3).double()[:2], []
    for rows in (slice(0, 1), slice(1, 2), slice(0, 2)):
        value = stack.objective(stack(Capsules(poses[rows])), targets[rows], batch=2)
        goal.append(torch.autograd.grad(value, stack.coefficients())[0])
    torch.testing.assert_close((goal[0] + goal[1]) / 2, goal[2], rtol=1e-12, atol=1e-12)
    whole = stack.objective(stack(Capsules(poses)), targets)
    assert torch.equal(whole, stack.objective(stack(Capsules(poses)), targets, batch=2))
    torch.testing.assert_close(
        stack.objective(stack(Capsules(poses)), targets, batch=1) - whole, -stack.layers[0].routing.penalty() / 2
    )


@pytest.mark.parametrize(("norm", "weight"), [("l1", 6.0), ("rows", 30.0)])
def test_a_proximal_step_is_the_gradient_step_and_then_a_soft_threshold(norm, weight):
    module = layer("linear-vector", "discriminative", norm=norm, penalty_weight=weight, proximal=True)
    capsules, stack, lr = children("linear-vector"), CapsuleStack([module]), 0.1
    coefficient, targets = module.routing.coefficient, torch.eye(3).double()
    goal = stack.objective(stack(capsules), targets)
    (gradient,) = torch.autograd.grad(-goal, [coefficient])
    moved = (coefficient - lr * gradient).detach().numpy()
    wanted = np.zeros_like(moved)
    for i, j in np.ndindex(moved.shape):
        size = abs(moved[i, j]) if norm == "l1" else np.sqrt(sum(moved[i] ** 2))
        wanted[i, j] = moved[i, j] * max(0, 1 - lr / len(targets) * weight / size)

    optimizer = torch.optim.SGD(stack.coefficients(), lr=lr)
    follow_steps(optimizer, stack.modules(), len(targets))
    coefficient.grad = gradient
    optimizer.step()
    np.testing.assert_allclose(coefficient.detach(), wanted, rtol=1e-10, atol=1e-14)
    zero = coefficient == 0
    assert zero.any() and not zero.all()
    assert norm == "l1" or torch.equal(zero.any(1), zero.all(1))


def test_the_subgradient_makes_no_exact_zero_and_its_penalty_is_zero_at_zero():
    for norm in ("l1", "rows"):
        routing = create_routing("discriminative", 3, 2, 2, norm=norm, penalty_weight=1.0)
        routing.coefficient.data.copy_(torch.tensor([[0.0, 0.0], [0.05, -0.3], [1.0, 2.0]]))
        (gradient,) = torch.autograd.grad(routing.penalty(), routing.coefficient)
        assert gradient[0].eq(0).all() and gradient[1:].ne(0).all()


def test_shrinking_leaves_other_coefficients_alone():
    plain = create_routing("discriminative", 2, 2, 2, norm="l1")
    optimizer = torch.optim.SGD(plain.coefficients(), lr=0.1)
    follow_steps(optimizer, [plain, torch.nn.Linear(1, 1)], batch=1)
    plain.coefficient.grad = torch.zeros(2, 2)
    optimizer.step()
    assert torch.equal(plain.coefficient, torch.full((2, 2), 0.1))


def test_several_classes_may_be_there_at_once():
    module = layer("linear-vector", "discriminative")
    state = module(children("linear-vector")).state
    targets = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1]]).double()
    quality = state.square().sum((1, 3))
    wanted = (quality[0, 0] + quality[0, 1] - quality[0, 2] - quality[1].sum() + quality[2].sum()) / 3
    torch.testing.assert_close(module.routing.objective(state, targets), wanted)


def test_parents_whose_coefficients_vanish_are_named():
    routing = create_routing("discriminative", 4, 3, 2, initial=-0.5)
    assert routing.collapsed() == []
    with torch.no_grad():
        routing.coefficient[:, 1] = 0.049
        assert routing.collapsed() == [1]
        routing.coefficient[:, 0] = torch.tensor([0.0, 0.0, 0.0, 20.0])  # the others are small beside it
        assert routing.collapsed() == [1, 2]
        routing.coefficient[:] = 0.01  # all have shrunk alike
        assert routing.collapsed() == [0, 1, 2]


def test_a_collapse_is_logged_once_for_each_parent(caplog):
    """Of two classes one is in no image: its coefficients decay."""
    torch.manual_seed(0)
    stack = CapsuleStack([CapsuleLayer(LinearTransform(4, 2, 2, 3), "discriminative", initial=1.0)])
    optimizer = torch.optim.SGD(stack.coefficients(), lr=0.05)
    warn_of_collapse(optimizer, dict(stack.named_modules()), every=5)
    capsules, targets = Capsules(torch.randn(8, 4, 2)), torch.tensor([[1.0, 0.0]]).expand(8, 2)
    for _ in range(20):
        optimizer.zero_grad()
        (-stack.objective(stack(capsules), targets)).backward()
        optimizer.step()
    assert stack.layers[0].routing.collapsed() == [1]
    (record,) = caplog.records
    assert "collapse of layers.0.routing: the coefficients of parents 1 have" in record.getMessage()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["linear-matrix", "linear-flattened", "conv-padded", *PLACED])
def test_folding_leaves_a_layer_without_routing_and_with_equal_outputs(name, bias):
    module, capsules = layer(name, "discriminative", bias=bias), children(name)
    folded = module.fold()
    torch.testing.assert_close(folded(capsules).capsules.poses, module(capsules).capsules.poses, rtol=1e-10, atol=1e-12)
    assert folded.routing.spec.name == "uniform" and list(folded.routing.state_dict()) == ["bias"] * bias
    step = folded.step(folded.votes(capsules), None, 0)
    assert step.coupling is None
    again = layer(name, "discriminative", seed=3, bias=bias).fold()
    again.load_state_dict(folded.state_dict())
    assert torch.equal(again(capsules).capsules.poses, folded(capsules).capsules.poses)
    module.routing.coefficient.data.zero_()
    assert folded(capsules).capsules.poses.abs().max() > 0.01


def test_folded_weights_lie_as_one_matrix_that_is_not_copied():
    folded = layer("linear-vector", "discriminative").fold()
    matrix = folded.transform.weight.permute(1, 2, 0, 3)
    assert matrix.is_contiguous() and matrix.flatten(0, 1).flatten(1).data_ptr() == folded.transform.weight.data_ptr()


def test_fixed_coefficients_are_a_linear_capsule_layer():
    """One dense matrix from all poses to all parents, then squash."""
    module, capsules = layer("linear-vector", "discriminative", fixed=True, initial=3), children("linear-vector")
    assert module.routing.coefficients() == [] and not list(module.routing.parameters())
    assert torch.equal(module.routing.coefficient, torch.full((7, 3), 3.0).double())
    weight = module.transform.weight * module.routing.coefficient.T[:, :, None, None]  # [j, i, c, m]
    dense = weight.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)  # [(i c), (j m)]
    wanted = squash((capsules.poses.flatten(1) @ dense).unflatten(-1, (3, 4)))
    torch.testing.assert_close(module(capsules).capsules.poses, wanted, rtol=1e-10, atol=1e-12)


def test_only_constant_couplings_fold():
    with pytest.raises(ValueError, match="'dynamic' has no constant coupling"):
        CapsuleLayer(ConvTransform(1, 2, 4, 4), "dynamic").fold()


class Weighted(Routing[None]):
    """Somebody's routing of constant shares, which learns them by a goal of its own."""

    spec = Spec("weighted", "nobody", "b I J d d'", "b J d", iterative=False, couplings=True, objective=True)

    def __init__(self, sizes, bias=True):
        super().__init__(sizes)
        if bias:
            self.keep_bias(True)
        self.share = torch.nn.Parameter(torch.rand(sizes.children, sizes.parents))
        self.told = []

    def couple(self, votes, state, t):
        return self.share

    def update(self, votes, coupling, state, t):
        return Capsules(squash(self.add_bias(votes.combine(coupling)))), None

    def constant_coupling(self):
        return self.share

    def coefficients(self):
        return [self.share]

    def after_step(self, lr, batch):
        self.told.append((lr, batch))

    def collapsed(self):
        return [2]


def test_a_routing_of_somebody_elses_is_folded_told_of_steps_and_looked_at(caplog):
    """Whoever folds a layer or trains coefficients asks the routing, and knows no algorithm."""
    transform = LinearTransform(5, 3, 4, 4)
    module, poses = CapsuleLayer(transform, Weighted(transform.sizes)), Capsules(torch.randn(2, 5, 4))
    module.routing.bias.data.normal_()
    torch.testing.assert_close(module.fold()(poses).capsules.poses, module(poses).capsules.poses)
    without = CapsuleLayer(transform, Weighted(transform.sizes, bias=False))  # one that never asked for a bias
    torch.testing.assert_close(without.fold()(poses).capsules.poses, without(poses).capsules.poses)

    optimizer = torch.optim.SGD(module.routing.coefficients(), lr=0.25)
    follow_steps(optimizer, module.modules(), batch=8)
    warn_of_collapse(optimizer, dict(module.named_modules()), every=1)
    module.routing.share.grad = torch.zeros(5, 3)
    with caplog.at_level("WARNING", logger="torchcaps"):
        optimizer.step()
    assert module.routing.told == [(0.25, 8)]
    assert "collapse of routing: the coefficients of parents 2 have" in caplog.records[0].getMessage()


def test_what_is_selected_shares_no_memory():
    routing = Discriminative(Sizes(4, 3, 5), bias=True)
    before = {name: value.clone() for name, value in routing.state_dict().items()}
    chosen = routing.select(slice(0, 2), slice(None), Sizes(2, 3, 5))
    with torch.no_grad():
        for each in chosen.parameters():
            each.add_(1.0)
    torch.testing.assert_close(routing.state_dict(), before, rtol=0, atol=0)
