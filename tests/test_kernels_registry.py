"""How a layer finds its fused steps, and when it takes them."""

import copy
import pickle

import pytest
import torch
from torch import nn

from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, LinearTransform, use_implementation
from torchcaps.routing.fused import register_kernel
from torchcaps.routing.interface import Step
from torchcaps.routing.inverted_attention import InvertedAttention
from torchcaps.routing.uniform import Uniform
from torchcaps.votes import LinearVotes


class Marked(Uniform):
    """A routing of this file alone, whose fused step leaves a mark: ones."""


class Heir(Marked):
    """Another algorithm: it has no kernel, though the class above has one."""


def small(transform, routing):
    return None if transform.sizes.parents < 4 else f"it takes up to 3 parents, not {transform.sizes.parents}"


@register_kernel(LinearVotes, Marked, supports=small)
def ones(routing, votes, state, t):
    poses = torch.ones(1, 1, votes.parents, votes.pose)
    return Step(Capsules(poses), None, poses)


def layer(routing=Marked, parents=3, **options):
    transform = LinearTransform(5, parents, 4, 4)
    return CapsuleLayer(transform, routing(transform.sizes), **options)


def takes_kernel(module):
    return bool((module(Capsules(torch.zeros(1, 5, 4))).capsules.poses == 1).all())


def test_auto_takes_the_kernel_where_one_is():
    assert layer().fused and takes_kernel(layer())
    assert not layer(implementation="plain").fused and not takes_kernel(layer(implementation="plain"))
    assert not layer(parents=4).fused and not takes_kernel(layer(parents=4))
    assert layer(implementation="fused").fused


def test_a_subclass_has_no_kernel_of_its_parent():
    assert not layer(Heir).fused
    with pytest.raises(ValueError, match="'fused', but there is no kernel for Heir on LinearVotes"):
        layer(Heir, implementation="fused")


def test_fused_says_why_not():
    with pytest.raises(ValueError, match="up to 3 parents, not 4; use 'auto' or 'plain'"):
        layer(parents=4, implementation="fused")
    with pytest.raises(ValueError, match="implementation is 'quick'; it must be 'auto', 'plain' or 'fused'"):
        layer(implementation="quick")


def test_a_transform_of_ones_own_has_plain_steps():
    class Own(LinearTransform):
        makes = None

    transform = Own(5, 3, 4, 4)
    assert not CapsuleLayer(transform, Marked(transform.sizes)).fused
    with pytest.raises(ValueError, match="no kernel for Marked on votes of their own"):
        CapsuleLayer(transform, Marked(transform.sizes), implementation="fused")


def test_the_implementation_may_be_set_afterwards():
    module = layer()
    module.implementation = "plain"
    assert not takes_kernel(module)
    refused = layer(parents=4)
    with pytest.raises(ValueError, match="up to 3 parents"):
        refused.implementation = "fused"
    assert refused.implementation == "auto"
    model = nn.Sequential(CapsuleStack([module]), layer())
    use_implementation(model, "fused")
    assert takes_kernel(module) and [each.implementation for each in (module, model[1])] == ["fused"] * 2


def test_copies_and_pickles_keep_it():
    for module in (copy.deepcopy(layer()), pickle.loads(pickle.dumps(layer()))):
        assert module.implementation == "auto" and takes_kernel(module)
    assert list(layer().state_dict()) == list(layer(implementation="plain").state_dict())


def test_a_visitor_sees_plain_steps():
    transform = ConvTransform(2, 3, 4, 4, matrix=True)
    stack = CapsuleStack([CapsuleLayer(transform, InvertedAttention(transform.sizes))], 2)
    couplings = []
    stack(Capsules(torch.randn(2, 4, 4, 2, 4)), visit=lambda level, t, step: couplings.append(step.coupling))
    assert couplings[1].shape == (2, 4, 18, 3)
    seen = []
    CapsuleStack([layer()])(Capsules(torch.zeros(1, 5, 4)), visit=lambda *args: seen.append(args[2].capsules.poses))
    assert (seen[0] == 0).all()


def test_an_export_takes_plain_steps():
    module = CapsuleStack([layer()])
    children = (Capsules(torch.zeros(2, 5, 4)),)
    exported = torch.export.export(module, children).module()
    assert (exported(*children)[-1].capsules.poses == 0).all()
