"""Algorithms x properties: each routing against its oracle, and what must hold for all of them."""

import copy

import numpy as np
import pytest
import torch
from layers import children, layer
from routings import EXACT, SPECS, VARIANTS, every_pair, every_variant, oracle, positions_flat

from torchcaps.capsules import Capsules
from torchcaps.routing import create_routing, routing_class


def test_every_routing_is_in_the_table():
    assert {name for name, _ in VARIANTS} == set(SPECS)


@every_pair
def test_equals_the_loops_of_the_paper(name, routing, options):
    module, capsules = layer(name, routing, **options), children(name)
    for iterations in (1, 3) if SPECS[routing].iterative else (1,):
        parents = module(capsules, iterations).capsules
        poses, activations = oracle(module, capsules, iterations)
        space = module.votes(capsules).space
        np.testing.assert_allclose(positions_flat(parents.poses, space).detach(), poses, rtol=1e-10, atol=1e-12)
        assert (parents.activations is not None) == SPECS[routing].gives_activations
        if activations is not None:
            np.testing.assert_allclose(
                positions_flat(parents.activations, space).detach(), activations, rtol=1e-10, atol=1e-12
            )


@pytest.mark.parametrize("name", ["linear-vector", "linear-matrix", "conv-matrix", "conv-padded"])
@pytest.mark.parametrize(("routing", "options"), EXACT, ids=lambda x: str(x) if x else "")
def test_gradients(name, routing, options):
    module, capsules = layer(name, routing, **options), children(name)
    names = [key for key, _ in module.named_parameters()]

    def run(poses, activations, *parameters):
        state = dict(zip(names, parameters, strict=True))
        step = torch.func.functional_call(module, state, (Capsules(poses, activations), 2))
        return tuple(x for x in step.capsules if x is not None)

    inputs = [x.clone().requires_grad_() for x in (*capsules, *(p.detach() for p in module.parameters()))]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True, atol=1e-6)


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
    for key, value in moved.routing.state_dict().items():
        if key == "coefficient" or value.shape == (i, j):
            value.copy_(value[order][:, parents])
        elif key.startswith("activation.beta") or key in ("initial", "bias", "beta_a", "beta_u"):
            value.copy_(value[parents])
        elif key.startswith("norm.") and value.ndim == 3:
            value.copy_(value[order] if value.shape[1] == 1 else value[order][:, parents])
    assert capsules.activations is not None
    after = moved(Capsules(capsules.poses[:, order], capsules.activations[:, order]), 3).capsules
    for a, b in zip(before, after, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a[:, parents], b, rtol=1e-10, atol=1e-12)


UNBIASED = "em", "fm", "self-routing", "variational-bayes"
BIASED = [name for name in SPECS if name not in UNBIASED]  # whose parents pass a nonlinearity or a norm


@pytest.mark.parametrize("routing", BIASED)
def test_only_a_bias_tells_an_input_from_its_negative(routing):
    """Peer et al. 2021. Of five signs the sum is never 0, whose sign would be that of its negative too."""
    capsules = children("linear-vector")
    negative = Capsules(-capsules.poses, capsules.activations)
    for bias in (False, True):
        module = layer("linear-vector", routing, bias=bias)
        if routing.startswith("inverted-attention"):
            module.routing.norm.bias.data.zero_()
        a, b = (module(each, 3).capsules.poses for each in (capsules, negative))
        if bias:
            assert (a + b).abs().max() > 0.05
        else:
            torch.testing.assert_close(a, -b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("routing", BIASED)
def test_a_bias_starts_from_zero_and_is_none_unless_asked_for(routing):
    plain, biased = (create_routing(routing, 3, 2, 4, bias=each) for each in (False, True))
    assert plain.bias is None and "bias" not in plain.state_dict()
    assert torch.equal(biased.bias, torch.zeros(2, 4)) and isinstance(biased.bias, torch.nn.Parameter)
    with pytest.raises(ValueError, match=r"option bias of routing .* is 1; it must be bool"):
        create_routing(routing, 3, 2, 4, bias=1)


@pytest.mark.parametrize("routing", UNBIASED)
def test_parents_without_a_nonlinearity_have_no_bias(routing):
    with pytest.raises(ValueError, match=r"no option of routing '.*' is named 'bias'"):
        create_routing(routing, 3, 2, 4, bias=True)


def test_state_dict_round_trip_and_deep_copy():
    for routing, options in VARIANTS:
        module, capsules = layer("conv-matrix", routing, **options), children("conv-matrix")
        fresh = layer("conv-matrix", routing, seed=9, **options)
        wanted = module(capsules, 2).capsules.poses
        assert not torch.equal(fresh(capsules, 2).capsules.poses, wanted)
        fresh.load_state_dict(module.state_dict())
        assert torch.equal(fresh(capsules, 2).capsules.poses, wanted)
        assert torch.equal(copy.deepcopy(module)(capsules, 2).capsules.poses, wanted)


def test_specs_are_complete():
    for name, spec in SPECS.items():
        assert routing_class(name).__doc__ and spec.paper and spec.time and spec.memory
        assert bool(create_routing(name, 3, 2, 4).coefficients()) == spec.objective
