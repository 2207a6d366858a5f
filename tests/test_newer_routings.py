"""Self-attention, self-routing and variational Bayes: what holds for any routing, and what is their own."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import oracles
import pytest
import torch
from fused import outcome, stack, twin
from layers import children, layer

from torchcaps.capsules import Capsules, squash_exponential
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, LinearTransform
from torchcaps.models.heads import CapsuleHead
from torchcaps.routing.self_attention import SelfAttention
from torchcaps.routing.self_routing import SelfRouting
from torchcaps.routing.variational_bayes import Standardise, VariationalBayes, digamma_series
from torchcaps.testing import check_routing


def seen(votes: np.ndarray, activations: np.ndarray | None) -> oracles.Seen:
    active = None if activations is None else activations[:, None]
    return oracles.Seen(votes[:, None], active, [[(k,) for k in range(votes.shape[1])]])


ORACLES = {
    "self-attention": (
        partial(SelfAttention, prior=False),
        lambda votes, active, _: oracles.self_attention(seen(votes, active), 0.0)[:, 0],
    ),
    "self-routing": (SelfRouting, None),
    "variational-bayes": (
        VariationalBayes,
        lambda votes, active, rounds: oracles.variational_bayes(
            seen(votes, active), rounds, "image", 0.0, 0.0, 1e-8, 1e-5
        )[0][:, 0],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ORACLES)
def test_has_the_properties_of_any_routing(name: str) -> None:
    checked = check_routing(*ORACLES[name])
    assert {"shapes", "permutations", "extremes", "dtypes", "compile", "export", "memory"} <= set(checked)
    assert {"gradients", "derivatives"} <= set(checked) and ("oracle" in checked) == (ORACLES[name][1] is not None)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["odd", "vector", "matrix", "one child", "one parent"])
def test_the_fused_step_of_self_attention_equals_the_plain_one(size: str) -> None:
    module, poses = stack(size, "self-attention", torch.float64)
    for a, b in zip(outcome(module, poses), outcome(twin(module), poses), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_the_fused_step_of_self_attention_on_windows() -> None:
    torch.manual_seed(0)
    transform = ConvTransform(2, 3, 4, 4, stride=2, padding=1, matrix=True)
    module = CapsuleStack([CapsuleLayer(transform, "self-attention", "fused")], 1).double()
    torch.nn.init.normal_(module.layers[0].routing.prior)
    capsules = children("conv-matrix")
    poses = capsules.poses
    for a, b in zip(outcome(module, poses), outcome(twin(module), poses), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_self_attention_needs_no_gram_matrix() -> None:
    """Logits are the sums of the rows of V V' / sqrt(d)."""
    module, capsules = layer("linear-vector", "self-attention"), children("linear-vector")
    votes = module.votes(capsules)
    dense = votes.dense()[:, 0]  # [b, i, j, d]
    rows = torch.einsum("bijd,bkjd->bij", dense, dense) / votes.pose**0.5
    coupling = module.routing.couple(votes, None, 0)
    assert coupling is not None
    torch.testing.assert_close(coupling[:, 0], rows.softmax(-1))


def test_the_exponential_squash_has_a_gradient_at_zero() -> None:
    poses = torch.zeros(2, 3, requires_grad=True)
    squash_exponential(poses).sum().backward()
    assert torch.equal(poses.grad, torch.ones(2, 3))
    lengths = squash_exponential(torch.tensor([[3.0, 4.0], [300.0, 400.0]])).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.tensor([1 - np.exp(-5.0), 1.0]).float())


def test_self_routing_starts_uniform_and_its_activations_add_up_to_one() -> None:
    torch.manual_seed(0)
    head = CapsuleHead("self-routing", (8, 3, 3), 5)
    output = head(torch.randn(2, 8, 3, 3))
    torch.testing.assert_close(output.scores, torch.full((2, 5), 0.2))
    (routed,) = head.stack.layers
    assert routed.transform.sizes.pose == 17 and output.capsules[-1].poses.shape == (2, 5, 16)
    torch.nn.init.normal_(routed.transform.weight)
    torch.testing.assert_close(head(torch.randn(2, 8, 3, 3)).scores.sum(1), torch.ones(2))


def test_self_routing_of_silent_children_is_finite() -> None:
    module, capsules = layer("linear-vector", "self-routing"), children("linear-vector")
    poses = capsules.poses.requires_grad_()
    found = module(Capsules(poses, torch.zeros_like(capsules.activations))).capsules
    (found.poses.sum() + found.activations.sum()).backward()
    assert not found.activations.any() and poses.grad.isfinite().all()


def test_self_routing_alone_may_have_no_pose() -> None:
    """The class layer of the paper: logits alone, of no pose."""
    transform = LinearTransform(6, 3, 4, 1)
    found = CapsuleLayer(transform, "self-routing")(Capsules(torch.randn(2, 6, 4), torch.rand(2, 6))).capsules
    assert found.poses.shape == (2, 3, 0) and found.activations.shape == (2, 3)


def test_digamma_is_that_of_torch() -> None:
    x = torch.linspace(0.5, 500, 2000, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(digamma_series(x), torch.digamma(x), rtol=1e-11, atol=1e-11)
    (gradient,) = torch.autograd.grad(digamma_series(x).sum(), x)
    torch.testing.assert_close(gradient, torch.polygamma(1, x.detach()), rtol=1e-8, atol=1e-10)


def test_variational_statistics_are_kept_by_iteration() -> None:
    """In evaluation what an iteration gives is standardised by its own statistics; a batch of one passes too."""
    module, capsules = layer("linear-vector", "variational-bayes", rounds=2), children("linear-vector")
    norms = module.routing.pose_norms
    module(capsules, 1)
    assert norms[0].running_mean.any() and not norms[1].running_mean.any()
    module(capsules, 3)
    assert norms[1].running_mean.any() and not torch.equal(norms[0].running_mean, norms[1].running_mean)
    assert capsules.activations is not None
    module.eval()
    for n, norms in enumerate((module.routing.pose_norms, module.routing.active_norms)):
        for t, norm in enumerate(norms):
            spread = torch.linspace(0, 1, norm.running_mean.numel(), dtype=norm.running_mean.dtype)
            norm.running_mean.copy_((t + n + 0.5 + spread).view_as(norm.running_mean))
            norm.running_var.copy_((t + n + 2.0 + spread).view_as(norm.running_var))

    def by(t: int) -> CapsuleLayer:
        """The layer whose iterations all have the statistics of iteration `t`."""
        other = copy.deepcopy(module)
        for norms in (other.routing.pose_norms, other.routing.active_norms):
            state = copy.deepcopy(norms[t].state_dict())
            for norm in norms:
                norm.load_state_dict(state)
        return other

    for rounds, t in ((1, 0), (2, 1), (3, 1)):  # of two norms the second serves all later iterations
        found, wanted = module(capsules, rounds).capsules, by(t)(capsules, rounds).capsules
        torch.testing.assert_close(found.poses, wanted.poses)
        torch.testing.assert_close(found.activations, wanted.activations)
    other = by(0)(capsules, 2).capsules
    assert not torch.allclose(module(capsules, 2).capsules.poses, other.poses)
    one = Capsules(capsules.poses[:1], capsules.activations[:1])
    assert module.eval()(one, 3).capsules.poses.isfinite().all()
    with pytest.raises(ValueError, match="rounds is 0; it must be a whole number, at least 1"):
        layer("linear-vector", "variational-bayes", rounds=0)


def test_variational_costs_are_removed_by_the_norm_behind_them() -> None:
    module, capsules = layer("linear-vector", "variational-bayes"), children("linear-vector")
    other = copy.deepcopy(module)
    other.routing.beta_a.data.add_(3)
    for a, b in zip(module(capsules, 2).capsules, other(capsules, 2).capsules, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_standardise_learns_its_running_statistics() -> None:
    norm, x = Standardise(2, momentum=1.0).double(), torch.randn(50, 3, 2, 4, dtype=torch.float64)
    trained = norm(x)
    torch.testing.assert_close(trained.mean((0, 1, 3)), torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(norm.running_var, x.movedim(2, 0).flatten(1).var(1))
    torch.testing.assert_close(norm.eval()(x), trained, rtol=1e-2, atol=1e-2)
