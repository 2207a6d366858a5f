"""Votes whose transforms the positions of a type share: every sum against linear votes with a matrix for each child."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from torchcaps.capsules import Capsules
from torchcaps.votes import LinearVotes
from torchcaps.votes.shared import CACHED, SharedVotes

TYPES, POSITIONS, COLUMNS, PARENTS, POSE, BATCH = 3, 4, 5, 9, 2, 2
CHILDREN = TYPES * POSITIONS


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def both(poses, weight):
    """The votes, and linear ones of the repeated weight."""
    activations = torch.rand(BATCH, CHILDREN, dtype=torch.float64)
    children = Capsules(poses, activations)
    repeated = torch.stack([weight[:, i // POSITIONS] for i in range(CHILDREN)], 1)
    return SharedVotes(children, weight, POSITIONS), LinearVotes(children, repeated)


SUMS = {
    "dense": lambda v: v.dense(),
    "combine": lambda v: v.combine(),
    "combine-all": lambda v: v.combine(draw(BATCH, 1, CHILDREN, PARENTS, seed=3)),
    "combine-one-image": lambda v: v.combine(draw(1, 1, CHILDREN, PARENTS, seed=3)),
    "combine-children": lambda v: v.combine(draw(BATCH, 1, CHILDREN, 1, seed=3)),
    "combine-constant": lambda v: v.combine(draw(CHILDREN, PARENTS, seed=3)),
    "combine-affine": lambda v: v.combine(draw(BATCH, 1, CHILDREN, PARENTS, seed=3), draw(POSE), draw(POSE, seed=4)),
    "agree": lambda v: v.agree(draw(BATCH, 1, PARENTS, POSE, seed=3)),
    "agree-one-image": lambda v: v.agree(draw(1, 1, PARENTS, POSE, seed=3)),
    "agree-xnor": lambda v: v.agree(draw(BATCH, 1, PARENTS, POSE, seed=3), "xnor"),
    "squares": lambda v: v.squares(draw(BATCH, 1, CHILDREN, PARENTS, seed=3), shift=draw(BATCH, 1, PARENTS, POSE)),
    "distance": lambda v: v.distance(draw(BATCH, 1, PARENTS, POSE), draw(BATCH, 1, PARENTS, POSE, seed=4)),
    "moments": lambda v: torch.cat([x.expand(CHILDREN, PARENTS, POSE) for x in v.moments("pair")]),
    "binarized": lambda v: v.binarized().combine(),
    "activations": lambda v: v.activations,
    "compete": lambda v: v.compete(draw(BATCH, 1, CHILDREN, PARENTS), "children"),
    "compete-first": lambda v: v.compete(None, "children"),
}


@pytest.mark.parametrize("name", SUMS)
def test_equals_linear_votes_with_gradients(name):
    poses, weight = draw(BATCH, CHILDREN, COLUMNS).requires_grad_(), draw(PARENTS, TYPES, COLUMNS, POSE, seed=1)
    weight.requires_grad_()
    torch.manual_seed(0)
    ours, theirs = (SUMS[name](votes) for votes in both(poses, weight))
    torch.testing.assert_close(ours, theirs)
    if ours.requires_grad:
        gradients = [torch.autograd.grad(x.square().sum(), (poses, weight), allow_unused=True) for x in (ours, theirs)]
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b)


def test_half_precision_gives_its_type():
    votes, linear = both(draw(BATCH, CHILDREN, COLUMNS).float(), draw(PARENTS, TYPES, COLUMNS, POSE).float())
    coupling, parents = draw(BATCH, 1, CHILDREN, PARENTS).float(), draw(BATCH, 1, PARENTS, POSE).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pairs = [(each.combine(coupling), each.agree(parents)) for each in (votes, linear)]
        assert pairs[0][0].dtype == votes.dtype == torch.bfloat16 and pairs[0][1].dtype == torch.float32
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0.1, atol=0.2)


def test_bad_children_are_named():
    with pytest.raises(ValueError, match=r"\(11, 5\)"):
        SharedVotes(Capsules(torch.ones(2, 11, 5)), torch.ones(9, 3, 5, 2), 4)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that is made while it is entered."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else (made,):
            if isinstance(each, torch.Tensor) and not func.is_view:
                self.numbers = max(self.numbers, each.numel())
        return made


def test_neither_all_votes_nor_a_weight_for_each_child_is_made():
    types, positions, columns, parents, pose = 8, 64, 9, 512, 16
    children = Capsules(torch.rand(1, types * positions, columns))
    votes = SharedVotes(children, torch.rand(parents, types, columns, pose), positions)
    state = torch.rand(1, 1, parents, pose)
    with Largest() as largest:
        votes.distance(state, state)
        votes.squares(torch.rand(1, 1, types * positions, parents), shift=state)
    assert types * positions * columns <= largest.numbers <= CACHED
    assert types * positions * parents * pose > CACHED
