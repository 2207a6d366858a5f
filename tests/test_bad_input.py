"""What a user can get wrong in routings, transforms and stacks is named, with the numbers."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from layers import children, layer
from torch import nn

from torchcaps.capsules import Capsules
from torchcaps.layers import (
    CapsuleLayer,
    CapsuleStack,
    ConvTransform,
    DenseDecoder,
    LinearTransform,
    PooledTransform,
    PrimaryCapsules,
    PrimaryPoses,
    Transform,
)
from torchcaps.layers.decoders import DeconvDecoder
from torchcaps.layers.normalised import NormalisedPrimary
from torchcaps.routing import Routing, Sizes, create_routing, list_routings, routing_class
from torchcaps.routing.dynamic import Dynamic
from torchcaps.routing.self_routing import SelfRouting
from torchcaps.votes import ConvVotes, LinearVotes, SequenceVotes
from torchcaps.votes.shared import SharedVotes

NAN = float("nan")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_routing("dynamik", 2, 2, 2), "nearest is 'dynamic'"),
        (lambda: create_routing("dynamic", 2, 2, 2, sharpness=3), "sharpness"),
        (lambda: create_routing("dynamic", 2, 0, 2), "parents of a routing is 0"),
        (lambda: create_routing("dynamic", 2, 2, 2, over="both"), "'both'"),
        (lambda: create_routing("dynamic", 2, 2, 2, gradients="none"), "'none'"),
        (lambda: create_routing("em", 2, 2, 2, scope="row"), "'row'"),
        (lambda: create_routing("xnodr", 2, 2, 2, threshold="mean"), "'mean'"),
        (lambda: create_routing("inverted-attention", 2, 2, 2, scope="row"), "'row'"),
        (lambda: create_routing("discriminative", 2, 2, 2, norm="l3"), "'l3'"),
        (lambda: create_routing("discriminative", 2, 2, 2, initial=0.0), "fixed point"),
        (lambda: create_routing("discriminative", 2, 2, 2, penalty_weight=-1.0), "-1.0"),
        (lambda: create_routing("discriminative", 2, 2, 2, proximal=True), "'l2'"),
        (lambda: create_routing("dynamic", 2, 2, 2, start="ones"), "'ones'"),
        (lambda: create_routing("inverted-attention", 2, 2, 2, start="one"), "'one'"),
        (lambda: create_routing("em", 2, 2, 2, growth=1.0), "growth is 1.0"),
        (lambda: create_routing("em", 2, 2, 2, temperature=0.0), "temperature is 0.0"),
        (lambda: create_routing("em", 2, 2, 2, temperature=()), "temperature is ()"),
        (lambda: create_routing("fm", 2, 2, 2, batch_norm="layer"), "'layer'"),
        (lambda: create_routing("fm", 2, 2, 2, batch_norm=3), "it must be 'element', 'child', 'pair' or None"),
        (lambda: create_routing("fm", 2, 2, 2, momentum=-5.0), "momentum of the batch norm is -5.0"),
        (lambda: create_routing("fm", 2, 2, 2, batch_norm_eps=-1.0), "eps of the batch norm is -1.0"),
        (lambda: create_routing("fm", 2, 2, 2, eps=NAN), "eps is nan"),
        (lambda: create_routing("em", 2, 2, 2, eps=-1.0), "eps is -1.0"),
        (lambda: create_routing("em", 2, 2, 2, temperature=NAN), "temperature is nan"),
        (lambda: create_routing("em", 2, 2, 2, temperature=(0.1, NAN)), "temperature is (0.1, nan)"),
        (lambda: create_routing("inverted-attention-c", 2, 2, 2, eps=0.0), "eps is 0.0"),
        (lambda: create_routing("self-routing", 2, 2, 2, eps=-1.0), "eps is -1.0"),
        (lambda: create_routing("discriminative", 2, 2, 2, initial=NAN), "initial is nan"),
        (lambda: create_routing("discriminative", 2, 2, 2, penalty_weight=NAN), "penalty_weight is nan"),
        (lambda: create_routing("discriminative", 2, 2, 2, absent_weight=NAN), "absent_weight is nan"),
        (lambda: create_routing("dynamic", 2, 2.0, 2), "parents of a routing is 2.0; it must be a whole number"),
        (lambda: create_routing("dynamic", 2, [2], 2), "parents of a routing is [2]"),
        (lambda: create_routing("dynamic", 2, 2, 2, sharper=1), "there is 'over', 'gradients', 'start', 'bias'"),
        (lambda: create_routing("dynamic", 2, 2, 2, routing_bias=True), "nearest is 'bias'"),
        (lambda: create_routing("dynamic", 2, 2, 2, iterations=3), "give them to a layer's call, layer(children, 3)"),
        (lambda: CapsuleLayer(LinearTransform(2, 2, 3, 3), "dynamic", iterations=3), "iterations are no option of"),
        (lambda: CapsuleLayer(LinearTransform(2, 2, 3, 3), create_routing("dynamic", 2, 2, 3), over="children"),
         "options over are given beside a routing that is built"),
        (lambda: LinearTransform(3, 2.0, 4, 4), "parents is 2.0"),
        (lambda: LinearTransform(3, 2, 4, True), "parent_pose is True"),
        (lambda: LinearTransform(3, 2, 4, 4, std=-1.0), "std is -1.0"),
        (lambda: LinearTransform(3, 2, 4, 4, std=NAN), "std is nan"),
        (lambda: ConvTransform(2, 2, 4, 4, stride=1.5), "stride is 1.5"),
        (lambda: ConvTransform(2, 2, 4, 4, padding="same"), "padding is 'same'; it must be a whole number, at least 0"),
        (lambda: ConvTransform(2, 2, 4, 4, kernel=(3, 3)), "kernel is (3, 3)"),
        (lambda: PrimaryCapsules(64, 0, 8), "capsules is 0"),
        (lambda: PrimaryPoses(64, 2, 8.0), "pose is 8.0"),
        (lambda: NormalisedPrimary(64, 2, 8, 0), "positions is 0"),
        (lambda: DenseDecoder(0, 8, (1, 4, 4)), "classes is 0"),
        (lambda: DenseDecoder(2, 8, (4, 4)), "image is (4, 4)"),
        (lambda: DenseDecoder(2, 8, (1, 4, 4), (0, 8)), "hidden is 0"),
        (lambda: DeconvDecoder(8, (1, 4, 0)), "image is 0"),
        (lambda: LinearTransform(12, 2, 4, 4, shared=5), "12 children cannot stand at 5 positions"),
        (lambda: LinearTransform(12, 2, 4, 4, shared=6)(Capsules(torch.ones(1, 2, 2, 3, 4))), "2x2 positions, but 6"),
        (lambda: LinearTransform(3, 2, 4, 1, coordinates=True), "1 element"),
        (lambda: LinearTransform(3, 2, 4, 4, coordinates=True)(Capsules(torch.ones(1, 3, 4))), "[1, 3, 4]"),
        (lambda: LinearTransform(3, 2, 4, 4)(Capsules(torch.ones(1, 5, 4))), "(5, 4)"),
        (lambda: LinearTransform(3, 2, 4, 4)(Capsules(torch.ones(3, 4))), "poses are [3, 4]; they must be [b, i,"),
        (lambda: LinearTransform(2, 2, 8, 16, matrix=True), "8 -> 16"),
        (lambda: LinearTransform(2, 2, 16, 18, matrix=True), "16 -> 18"),
        (lambda: LinearTransform(2, 2, 0, 16), "child_pose is 0"),
        (lambda: LinearTransform(0, 2, 8, 16), "children is 0"),
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CapsuleLayer("linear"), "transform is 'linear'; it must be one, such as LinearTransform"),
        (lambda: CapsuleLayer(LinearTransform), "transform is <class"),
        (lambda: CapsuleLayer(LinearTransform(2, 2, 3, 3), Dynamic), "it must be a registered name or a Routing that"),
        (lambda: CapsuleLayer(LinearTransform(2, 2, 3, 3), None), "routing is None"),
        (lambda: CapsuleStack(layer("linear-vector", "dynamic")), r"give a list of them: CapsuleStack\(\[layer\]\)"),
        (lambda: CapsuleStack([nn.Linear(2, 2)]), "layer 0 is Linear.*; it must be a CapsuleLayer"),
        (lambda: create_routing(None, 2, 2, 2), "routing is None; it must be a registered name, such as 'dynamic'"),
    ],
)  # fmt: skip
def test_what_is_no_part_of_a_layer_is_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_counts_may_be_of_numpy_and_sizes_a_tuple():
    two = np.int64(2)
    made = CapsuleLayer(ConvTransform(two, two, two, two, kernel=two, stride=two, padding=two), "dynamic")
    assert made(Capsules(torch.rand(2, 4, 4, 2, 2))).capsules.poses.shape == (2, 4, 4, 2, 2)
    assert all(type(each) is int for each in made.transform.sizes)
    assert CapsuleStack([made], two).iterations == 2
    for spec in list_routings():
        assert routing_class(spec.name)((3, two, 2)).sizes == Sizes(3, 2, 2)


def test_a_routing_keeps_no_fewer_elements_than_serve_it_alone():
    assert create_routing("self-routing", 2, 2, 1).sizes.pose == 1  # class capsules without a pose
    more = type("More", (SelfRouting,), {"spec": replace(SelfRouting.spec, name="more", hidden=3)})
    with pytest.raises(ValueError, match="pose of a routing is 2; of 'more' it is at least 3"):
        more(Sizes(2, 2, 2))


def test_a_method_that_is_missing_is_named():
    missing = type("Missing", (Dynamic,), {"couple": Routing.couple, "update": Routing.update})(Sizes(2, 2, 2))
    with pytest.raises(NotImplementedError, match=r"Missing has no method couple\(votes, state, t\)"):
        missing.couple(None, None, 0)
    with pytest.raises(NotImplementedError, match=r"Missing has no method update\(votes, coupling, state, t\)"):
        missing.update(None, None, None, 0)
    with pytest.raises(NotImplementedError, match="Transform has no method vote"):
        Transform((2,), 2, 2, 2)(Capsules(torch.rand(1, 2, 2)))


def test_what_differs_from_the_defaults_is_shown():
    transform = ConvTransform(2, 2, 4, 4, stride=2, padding=1)
    shown = repr(CapsuleStack([CapsuleLayer(transform, "dynamic", "plain", over="children", start="random")], 2))
    assert "stride 2, padding 1" in shown and "Dynamic(over='children', start='random')" in shown
    assert "iterations=2" in shown and "implementation='plain'" in shown and "schedule" not in shown
    usual = repr(CapsuleStack([CapsuleLayer(LinearTransform(2, 2, 4, 4), "dynamic")], 1, "concurrent"))
    assert "Dynamic()" in usual and "schedule='concurrent'" in usual and "implementation" not in usual
    for name, options, expected in (
        ("discriminative", {"initial": 0.2, "norm": "l1"}, "norm='l1', initial=0.2"),
        ("em", {"temperature": 0.5}, "temperature=0.5, growth=0.95"),
        ("uniform", {"bias": True}, "Uniform(bias=True)"),
        ("fm", {"l2": False}, "l2=False"),
    ):
        assert expected in repr(create_routing(name, 2, 2, 2, **options))
    assert "poses of 8, pooled" in repr(PrimaryCapsules(2, 2, 8, pooled=True))


TRANSFORMS = {
    "linear": (lambda: LinearTransform(6, 3, 16, 16, matrix=True), (6,)),
    "placed": (lambda: LinearTransform(24, 3, 16, 16, matrix=True), (2, 2, 6)),
    "pooled": (lambda: PooledTransform(6, 3, 16, 16, matrix=True), (2, 2, 6)),
    "conv": (lambda: ConvTransform(6, 3, 16, 16, kernel=2, matrix=True), (3, 3, 6)),
    "sequence": (lambda: ConvTransform(6, 3, 16, 16, kernel=2, matrix=True, dims=1), (3, 6)),
}


@pytest.mark.parametrize("kind", TRANSFORMS)
@pytest.mark.parametrize("routing", [spec.name for spec in list_routings() if spec.needs_activations])
def test_activations_of_another_shape_are_named_before_a_kernel_reads_them(routing, kind):
    make, space = TRANSFORMS[kind]
    module, poses = CapsuleLayer(make(), routing), torch.randn(2, *space, 16)
    wrong = ((1, *space), (3, *space), (2, *space, 1), (2, *space[:-1], 5), (2, 6, *space[:-1], 6), space)
    for shape in wrong:
        message = f"activations are {list(shape)}; they must be {[2, *space]}, poses.shape[:-1], one a capsule"
        with pytest.raises(ValueError, match=re.escape(message)):
            module(Capsules(poses, torch.rand(shape)), 2)
    with pytest.raises(ValueError, match=re.escape("activations are torch.int64; they must be floating")):
        module(Capsules(poses, torch.ones(2, *space, dtype=torch.int64)))
    with pytest.raises(ValueError, match="activations are on cpu, but poses on meta"):
        module.transform(Capsules(poses.to("meta"), torch.rand(2, *space)))


@pytest.mark.parametrize("form", [LinearVotes, ConvVotes, SequenceVotes, SharedVotes])
def test_votes_of_activations_of_another_shape_are_refused(form):
    make = {
        LinearVotes: lambda x: LinearVotes(Capsules(torch.randn(2, 6, 4), x), torch.randn(3, 6, 4, 4)),
        ConvVotes: lambda x: ConvVotes(Capsules(torch.randn(2, 1, 1, 6, 4), x), torch.randn(3, 1, 1, 6, 4, 4)),
        SequenceVotes: lambda x: SequenceVotes(Capsules(torch.randn(2, 1, 6, 4), x), torch.randn(3, 1, 1, 6, 4, 4)),
        SharedVotes: lambda x: SharedVotes(Capsules(torch.randn(2, 6, 4), x), torch.randn(3, 3, 4, 4), 2),
    }[form]
    with pytest.raises(ValueError, match=r"activations are \[2, 5\]; they must be"):
        make(torch.rand(2, 5))


def test_the_operation_of_em_reads_no_memory_that_its_inputs_do_not_have():
    pytest.importorskip("numba")
    poses, weight, active = torch.randn(2, 3, 3, 5, 16), torch.randn(3, 2, 2, 5, 4, 4), torch.rand(2, 3, 3, 5)
    state, how = (torch.rand(2, 4, 3, 16), torch.rand(2, 4, 3, 16), torch.rand(2, 4, 3)), (4, 1, 0, False, False, 1e-8)
    for wrong, message in (
        ((poses, weight, active[:, :2], *state), "activations are [2, 2, 3, 5]; they must be [2, 3, 3, 5]"),
        ((poses[..., :12], weight, active, *state), "poses are [2, 3, 3, 5, 12]; they must be [b, h, w, 5, 16]"),
        ((poses, weight, active, state[0][:, :3], *state[1:]), "mean is [2, 3, 3, 16]; it must be [2, 4, 3, 16]"),
        ((poses, weight, active, *state[:2], state[2][:1]), "prior is [1, 4, 3]; it must be [2, 4, 3]"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            torch.ops.torchcaps.em_step(*wrong, *how)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layer("linear-vector", "dynamic")(torch.randn(2, 6, 4)), "the children are a Tensor; they must be"),
        (lambda: layer("linear-vector", "dynamic").transform(torch.randn(2, 6, 4)), "the children are a Tensor"),
        (lambda: layer("linear-vector", "dynamic")(Capsules(np.ones((2, 6, 4)))), "poses are a ndarray"),
        (lambda: layer("linear-vector", "em")(Capsules(torch.ones(2, 6, 4), [1.0])), "activations are a list"),
    ],
)  # fmt: skip
def test_what_is_no_capsules_is_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()
