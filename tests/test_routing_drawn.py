"""Shapes and values that hypothesis draws: what holds for every layer of capsules."""

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from routings import FIRST

from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, ConvTransform, LinearTransform

sizes = st.integers(1, 5)


@st.composite
def drawn(draw):
    """A layer of any routing and children that it takes, with poses between 1e-4 and 1e4 in size, some zero."""
    routing, options = draw(st.sampled_from(FIRST))
    types, parents, batch = draw(sizes), draw(sizes), draw(sizes)
    matrix = draw(st.booleans())
    pose, out = (draw(st.sampled_from([1, 4, 9])),) * 2 if matrix else (draw(sizes), draw(sizes))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    if draw(st.booleans()):
        kernel, padding = draw(st.integers(1, 3)), draw(st.integers(0, 1))
        image = [draw(st.integers(max(1, kernel - 2 * padding), 5)) for _ in range(2)]
        transform = ConvTransform(types, parents, pose, out, kernel, draw(st.integers(1, 2)), padding, matrix)
        shape = (batch, *image, types, pose)
    else:
        transform = LinearTransform(types, parents, pose, out, matrix)
        shape = (batch, types, pose)
    poses = torch.randn(shape) * 10.0 ** draw(st.integers(-4, 4)) * (torch.rand(shape[:-1]) > 0.2).unsqueeze(-1)
    return CapsuleLayer(transform, routing, **options), Capsules(poses, torch.rand(shape[:-1]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(drawn(), st.integers(1, 3))
def test_any_layer_is_finite_with_its_gradients_and_has_the_shape_it_says(pair, iterations):
    module, capsules = pair
    step = module(capsules, iterations)
    votes = module.votes(capsules)
    parents, pose = module.transform.sizes.parents, module.transform.sizes.pose - module.routing.spec.hidden
    assert step.capsules.poses.shape == (len(capsules.poses), *votes.space, parents, pose)
    assert all(x.isfinite().all() for x in step.capsules if x is not None)
    sum(x.sum() for x in step.capsules if x is not None).backward()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(drawn(), st.integers(1, 3))
def test_couplings_are_shares_of_each_child(pair, iterations):
    """Non-negative, and over the parents of a position they sum to at most one; to one where none compete elsewhere."""
    module, capsules = pair
    assume(module.routing.spec.couplings and not module.routing.spec.objective)
    module.implementation = "plain"  # fused steps hold no coupling
    step, votes = module(capsules, iterations), module.votes(capsules)
    if step.coupling is None:
        assert iterations == 1 or not module.routing.spec.iterative
        return
    shape = (len(capsules.poses), *module.votes(capsules).dense().shape[1:3], votes.parents)
    coupling = step.coupling.expand(shape)
    total = coupling.sum(-1)
    assert coupling.min() >= 0 and total.max() <= 1 + 1e-5
    there = torch.ones(shape[1:3], dtype=torch.bool) if votes.present is None else votes.present
    assert total[:, ~there].eq(0).all()
    if getattr(module.routing, "scope", "window") == "window":
        torch.testing.assert_close(total[:, there], torch.ones_like(total[:, there]), rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(drawn())
def test_an_image_is_routed_alike_in_any_batch(pair):
    module, capsules = pair
    module = module.eval()
    poses = capsules.poses
    alone = module(Capsules(poses[:1], capsules.activations[:1]), 2).capsules.poses
    together = module(capsules, 2).capsules.poses[:1]
    if module.routing.spec.exact_gradient:  # rounding may choose a sign
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4 * float(alone.detach().abs().max() + 1e-3))
