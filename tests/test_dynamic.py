"""What is particular to dynamic routing: its identities, its gradients and the start of its logits."""

import torch
from layers import children, layer

from torchcaps.capsules import squash


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_dynamic_with_one_iteration_is_uniform():
    capsules = children("linear-vector")
    a, b = layer("linear-vector", "dynamic"), layer("linear-vector", "uniform")
    close(a(capsules, 1).capsules.poses, b(capsules).capsules.poses)
    a.implementation = "plain"
    assert torch.equal(a(capsules, 1).capsules.poses, b(capsules).capsules.poses)


def test_dynamic_can_take_gradients_through_the_last_iteration_only():
    """The forward is the same; the gradient is that of fixed couplings."""
    capsules = children("linear-vector")
    module, last = (
        layer("linear-vector", "dynamic", gradients=gradients, implementation="plain") for gradients in ("all", "last")
    )
    step = last(capsules, 3)
    assert torch.equal(step.capsules.poses, module(capsules, 3).capsules.poses)
    fixed = squash(last.votes(capsules).combine(step.coupling.detach()))
    weight = last.transform.weight
    a, b = (torch.autograd.grad(y.square().sum(), weight)[0] for y in (step.capsules.poses, fixed))
    torch.testing.assert_close(a, b)
    full = torch.autograd.grad(module(capsules, 3).capsules.poses.square().sum(), module.transform.weight)[0]
    assert not torch.allclose(full, a)


def test_logits_can_start_from_learnt_or_drawn_values():
    """Zero is the default; a learnt start begins there and has a gradient; a drawn one is kept, and is not learnt."""
    capsules = children("linear-vector")
    zero = layer("linear-vector", "dynamic")
    learnt = layer("linear-vector", "dynamic", start="learnt")
    assert zero.routing.initial is None and isinstance(learnt.routing.initial, torch.nn.Parameter)
    learnt.routing.initial.data.zero_()
    close(learnt(capsules, 3).capsules.poses, zero(capsules, 3).capsules.poses)
    learnt(capsules, 3).capsules.poses.square().sum().backward()
    assert learnt.routing.initial.grad.abs().min() > 0

    drawn = layer("linear-vector", "dynamic", start="random")
    assert not list(drawn.routing.parameters()) and drawn.routing.initial.std() > 0.1
    assert drawn.routing.initial.min() >= 0 and drawn.routing.initial.max() < 1
    other = layer("linear-vector", "dynamic", seed=1, start="random")
    assert not torch.equal(drawn.routing.initial, other.routing.initial)
    other.load_state_dict(drawn.state_dict())
    assert torch.equal(other(capsules, 3).capsules.poses, drawn(capsules, 3).capsules.poses)


def test_a_learnt_start_keeps_its_gradient_where_agreements_are_constants():
    module, capsules = layer("linear-vector", "dynamic", start="learnt", gradients="last"), children("linear-vector")
    step = module(capsules, 2)
    agreement = module.votes(capsules).agree(module(capsules, 1).capsules.poses.unsqueeze(1)).detach()
    assert module.routing.initial is not None
    fixed = squash(module.votes(capsules).combine((agreement + module.routing.initial).softmax(-1)))[:, 0]
    close(step.capsules.poses, fixed)
    a, b = (torch.autograd.grad(y.square().sum(), module.routing.initial)[0] for y in (step.capsules.poses, fixed))
    close(a, b)
