"""What is particular to FM agreement: pairs, batch norm without votes, normalised poses."""

import numpy as np
import oracles
import pytest
import torch
from layers import children, layer, seen
from routings import positions_flat, vote_norm
from torch import nn

from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, CapsuleStack, LinearTransform


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["linear-matrix", "conv-padded"])
def test_equals_the_sum_over_all_pairs_written_out(name):
    """a_j is the mean over n of the inner products of all pairs of votes of length one, each pair counted once."""
    module, capsules = layer(name, "fm", batch_norm=None), children(name)
    votes = module.votes(capsules)
    dense = votes.dense() / votes.dense().norm(dim=-1, keepdim=True).clamp_min(1e-30)  # [b, p, i, j, d]
    pairs = torch.einsum("bpijd,bpkjd->bpikj", dense, dense)
    i = dense.shape[2]
    above = torch.ones(i, i, dtype=torch.bool).triu(1)
    count = i if votes.present is None else votes.present.sum(-1)[:, None]
    activations = positions_flat(module(capsules).capsules.activations, votes.space)
    torch.testing.assert_close(activations, pairs[:, :, above].sum(2) / count, rtol=1e-8, atol=1e-10)


def test_activations_have_the_bounds_that_the_docstring_gives():
    transform = LinearTransform(4, 1, 2, 2)
    transform.weight.data.copy_(torch.eye(2))
    module = CapsuleLayer(transform, "fm", batch_norm=None)
    same = torch.tensor([[3.0, 4.0]]).expand(1, 4, 2)
    assert module(Capsules(same)).capsules.activations.item() == pytest.approx((4 - 1) / 2)
    apart = torch.tensor([[[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0], [0.0, -1.0]]])
    assert module(Capsules(apart)).capsules.activations.item() == pytest.approx(-1 / 2)
    code = CapsuleLayer(transform, "fm", batch_norm=None, halved=False)
    assert code(Capsules(same)).capsules.activations.item() == pytest.approx(4 - 1)


@pytest.mark.parametrize("each", ["element", "child", "pair"])
@pytest.mark.parametrize("name", ["linear-vector", "conv-padded"])
def test_batch_norm_learns_running_statistics_and_uses_them_in_evaluation(name, each):
    module = layer(name, "fm", batch_norm=each, momentum=0.3)
    norm = module.routing.norm
    mean, variance = norm.running_mean.clone(), norm.running_variance.clone()
    for seed in (0, 1):
        capsules = children(name, seed)
        module(capsules)
        batch_mean, batch_variance, count = oracles.vote_statistics(seen(module.transform, capsules), each)
        unbiased = batch_variance * count / np.maximum(count - 1, 1)
        mean, variance = (
            0.7 * kept + 0.3 * torch.from_numpy(new) for kept, new in ((mean, batch_mean), (variance, unbiased))
        )
    there = torch.from_numpy(count > 1).expand_as(mean)
    close(norm.running_mean.expand_as(mean)[there], mean[there])
    close(norm.running_variance.expand_as(mean)[there], variance[there])

    module.eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    parents, space = module(capsules).capsules, module.votes(capsules).space
    truth = seen(module.transform, capsules)
    get = {key: value.numpy() for key, value in module.routing.state_dict().items()}
    poses, _ = oracles.fm(truth, True, True, True, module.routing.eps, *vote_norm(truth, module.routing, get))
    np.testing.assert_allclose(positions_flat(parents.poses, space).detach(), poses, rtol=1e-10, atol=1e-12)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_batch_norm_is_that_of_torch():
    """The votes, normalised one by one by nn.BatchNorm1d over their elements."""
    module, capsules = layer("linear-matrix", "fm", l2=False), children("linear-matrix")
    norm = nn.BatchNorm1d(4).double()
    norm.weight.data, norm.bias.data = module.routing.norm.weight.data, module.routing.norm.bias.data
    votes = norm(module.votes(capsules).dense().flatten(0, -2)).unflatten(0, (2, 5, 3))  # [b, i, j, d]
    wanted = (votes.sum(1).square() - votes.square().sum(1)) / (2 * 5)
    close(module(capsules).capsules.poses, wanted)
    close(module.routing.norm.running_mean, norm.running_mean)
    close(module.routing.norm.running_variance, norm.running_var)


def test_poses_are_normalised_where_the_network_asks():
    module, capsules = layer("linear-vector", "fm"), children("linear-vector")
    last = layer("linear-vector", "fm", normalised=True)
    raw, normal = module(capsules).capsules, last(capsules).capsules
    close(normal.poses, nn.functional.normalize(raw.poses, dim=-1))
    close(normal.activations, raw.activations)
    close(raw.activations, raw.poses.sum(-1))
    gradient = torch.autograd.grad(last(Capsules(0 * capsules.poses)).capsules.poses.sum(), last.transform.weight)[0]
    assert gradient.isfinite().all()


def test_hidden_layers_pass_the_raw_poses_on():
    hidden, top = CapsuleLayer(LinearTransform(5, 4, 4, 4, matrix=True), "fm"), LinearTransform(4, 3, 4, 4, matrix=True)
    stack = CapsuleStack([hidden, CapsuleLayer(top, "fm", normalised=True)])
    capsules = children("linear-matrix", dtype=torch.float32)
    first, last = stack(capsules)
    assert (first.capsules.poses.norm(dim=-1) - 1).abs().max() > 0.1
    torch.testing.assert_close(last.capsules.poses.norm(dim=-1), torch.ones(2, 3))
    assert len(list(stack(capsules, visit=None))) == 2 and stack.plan() == [(0, 0), (1, 0)]
