"""Every sum of the lazy votes against the votes themselves, and the votes against loops."""

import numpy as np
import pytest
import torch
from layers import ALL, children, seen, transform

from torchcaps.capsules import Capsules, binarize
from torchcaps.layers import ConvTransform, LinearTransform

pytestmark = pytest.mark.parametrize("name", ALL)


def made(name):
    """Votes of a case, the dense truth [b, p, i, j, d] and which children are there [p, i]."""
    capsules, module = children(name), transform(name)
    truth = seen(module, capsules)
    there = np.array([[child is not None for child in window] for window in truth.child])
    return module(capsules), torch.from_numpy(truth.votes), torch.from_numpy(there), truth


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_dense_is_pose_times_weight(name):
    votes, dense, there, truth = made(name)
    close(votes.dense(), dense)
    close(votes.activations, torch.from_numpy(truth.activations))
    assert (votes.present is None and there.all()) or torch.equal(votes.present, there)
    assert (votes.children, votes.parents, votes.pose) == tuple(dense.shape[2:])


def test_combine(name):
    votes, dense, _, _ = made(name)
    b, p, i, j, _ = dense.shape
    torch.manual_seed(1)
    coupling = random(b, p, i, j)
    close(votes.combine(coupling), (coupling[..., None] * dense).sum(2))
    close(votes.combine(coupling[..., :1]), (coupling[..., :1, None] * dense).sum(2))
    close(votes.combine(coupling[0, 0]), (coupling[0, 0, ..., None] * dense).sum(2))
    close(votes.combine(), dense.sum(2))


def test_agree(name):
    votes, dense, _, _ = made(name)
    b, p, _, j, d = dense.shape
    torch.manual_seed(1)
    parents = random(b, p, j, d)
    close(votes.agree(parents), (dense * parents[:, :, None]).sum(-1))
    close(votes.agree(parents, "xnor"), (binarize(dense) * parents[:, :, None]).sum(-1))
    shared = parents[:1, :1]  # of all images and positions
    close(votes.agree(shared), (dense * shared[:, :, None]).sum(-1))
    middle = (dense.flatten(1).amin(1) + dense.flatten(1).amax(1)) / 2
    signs = binarize(dense, threshold=middle[:, None, None, None, None])
    close(votes.agree(parents, "xnor-midpoint"), (signs * parents[:, :, None]).sum(-1))


def test_squares_and_distance(name):
    votes, dense, there, _ = made(name)
    b, p, i, j, d = dense.shape
    torch.manual_seed(1)
    coupling, scale, shift = random(b, p, i, j) * there[:, :, None], random(b, p, j, d), random(d)
    squares = (dense * scale[:, :, None] + shift).square()
    close(votes.squares(coupling, scale, shift), (coupling[..., None] * squares).sum(2))
    close(votes.squares(coupling[..., :1]), (coupling[..., :1, None] * dense.square()).sum(2))
    close(votes.squares("ones", scale, shift), (there[:, :, None, None] * squares).sum(2))
    close(votes.distance(scale, shift), squares.sum(-1))
    close(votes.distance(), dense.square().sum(-1))


def test_combine_squares_and_distance_of_scaled_votes(name):
    """Scale and shift of each child, of each child and parent, or of all alike."""
    votes, dense, there, _ = made(name)
    b, p, i, j, d = dense.shape
    torch.manual_seed(1)
    there = there[:, :, None]
    for coupling in (random(b, p, i, j) * there, random(b, p, i, 1) * there, random(i, j), "ones", None):
        plain = dense.new_tensor(1 / j) if coupling is None else 1 if isinstance(coupling, str) else None
        share = there[..., None] * (plain if plain is not None else coupling.expand(b, p, i, -1)[..., None])
        for shape in ((d,), (b, p, j, d), (1, 1, i, 1, d), (1, 1, i, j, d)):
            scale, shift = random(*shape), random(*shape)
            wide = (x.unsqueeze(2) if x.ndim == 4 else x for x in (scale, shift))
            changed = dense * next(wide) + next(wide)
            close(votes.combine(coupling, scale, shift), (share * changed).sum(2))
            close(votes.squares(coupling, scale, shift), (share * changed.square()).sum(2))
            close(votes.distance(scale, shift), changed.square().sum(-1))
    close(votes.combine("ones", scale=random(d) * 0 + 2), 2 * dense.sum(2))
    close(votes.combine(None), dense.sum(2) / votes.parents)  # uniform, as a routing says it
    close(votes.squares(None), dense.square().sum(2) / votes.parents)


def test_moments(name):
    votes, dense, there, _ = made(name)
    kept = dense[:, there].flatten(0, -2)  # all votes that are there, [n, d]
    mean, variance, count = votes.moments()
    close(mean, kept.mean(0))
    close(variance, kept.var(0, unbiased=False))
    assert count == len(kept)
    for each, axes in (("child", (0, 1, 3)), ("pair", (0, 1))):
        mean, variance, count = votes.moments(each)
        for i in range(dense.shape[2]):
            mine = dense[:, there[:, i], i][:, :, None]  # [b, p, 1, j, d]
            close(mean[i], mine.mean(axes, keepdim=True)[0, 0, 0])
            close(variance[i], mine.var(axes, unbiased=False, keepdim=True)[0, 0, 0])
            assert count[i].item() * dense.shape[-1] * (1 if each == "child" else dense.shape[3]) == mine.numel()


def test_compete_over_parents_sums_to_one_for_each_child(name):
    votes, dense, there, truth = made(name)
    b, p, i, j, _ = dense.shape
    logits = 3 * random(b, p, i, j)
    window = votes.compete(logits)
    close(window.sum(-1), there.double().expand(b, p, i))
    image = votes.compete(logits, scope="image")
    total = {}
    for q, names in enumerate(truth.child):
        for k, child in enumerate(names):
            if child is None:
                assert image[:, q, k].eq(0).all()
            else:
                total[child] = total.get(child, 0) + image[:, q, k].sum(-1)
    close(torch.stack(list(total.values())), torch.ones(len(total), b, dtype=torch.float64))
    for scope in ("window", "image"):
        equal = votes.compete(None, scope=scope)
        close(equal.expand(b, p, i, j), votes.compete(torch.zeros(b, p, i, j, dtype=torch.float64), scope=scope))


def test_compete_over_children_sums_to_one_for_each_parent(name):
    votes, dense, there, _ = made(name)
    b, p, i, j, _ = dense.shape
    coupling = votes.compete(random(b, p, i, j), over="children")
    close(coupling.sum(2), torch.ones(b, p, j, dtype=torch.float64))
    assert coupling.masked_select(~there[None, :, :, None].expand_as(coupling)).eq(0).all()
    equal = votes.compete(None, over="children")
    close(equal.sum(2).expand(1, p, 1), torch.ones(1, p, 1, dtype=torch.float64))


def test_competition_is_finite_at_extreme_logits_with_gradients(name):
    votes, dense, _, _ = made(name)
    logits = (1e4 * random(*dense.shape[:-1])).float().requires_grad_()
    for scope in ("window", "image"):
        coupling = votes.compete(logits, scope=scope)
        (gradient,) = torch.autograd.grad((coupling * torch.randn_like(coupling)).sum(), logits)
        assert coupling.isfinite().all() and gradient.isfinite().all()


def test_children_of_the_wrong_shape_are_named(name):
    module, capsules = transform(name), children(name)
    wrong = Capsules(capsules.poses[..., :-1], capsules.activations)
    with pytest.raises(ValueError, match=r"the children are"):
        module(wrong)
    if isinstance(module, ConvTransform):
        with pytest.raises(ValueError, match="positions"):
            module(Capsules(capsules.poses[:, 0, 0]))
    assert isinstance(module, ConvTransform | LinearTransform)
