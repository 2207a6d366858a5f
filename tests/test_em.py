"""What is particular to EM routing: activations, the schedule of lambda, coordinates, shared transforms."""

import numpy as np
import oracles
import pytest
import torch
from layers import PLACED, children, layer, seen
from routings import costs, positions_flat

from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, ConvTransform, LinearTransform
from torchcaps.routing import create_routing


def test_em_heeds_the_activations_of_its_children():
    module, capsules = layer("conv-matrix", "em", temperature=0.5), children("conv-matrix")
    quiet = capsules._replace(activations=torch.where(torch.arange(2) == 0, 1e-9, capsules.activations))
    a, b = module(capsules, 2).capsules, module(quiet, 2).capsules
    assert (a.poses - b.poses).abs().max() > 0.1 and (a.activations - b.activations).abs().max() > 0.01
    with pytest.raises(ValueError, match="needs activations"):
        module(Capsules(capsules.poses), 2)


@pytest.mark.parametrize("name", PLACED)
def test_em_with_coordinates_and_shared_transforms_equals_the_loops(name):
    module, capsules = layer(name, "em", temperature=0.5), children(name)
    values = {key: value.numpy() for key, value in module.routing.state_dict().items()}
    parents, space = module(capsules, 3).capsules, module.votes(capsules).space
    wanted = oracles.em(seen(module.transform, capsules), 3, "image", costs(module.routing, values))
    for a, b in zip(parents, wanted, strict=True):
        np.testing.assert_allclose(positions_flat(a, space).detach(), b, rtol=1e-10, atol=1e-12)


def test_lambda_follows_its_schedule():
    def schedule(**options):
        return [create_routing("em", 2, 2, 2, **options).activation.inverse_temperature(t) for t in range(4)]

    assert schedule(temperature=2.0) == pytest.approx([2 * (1 - 0.95 ** (t + 1)) for t in range(4)])
    assert schedule(temperature=2.0, growth=0.0) == [2.0] * 4
    assert schedule(temperature=(0.1, 0.7)) == [0.1, 0.7, 0.7, 0.7]


def test_normalised_activations_differ_where_a_steep_sigmoid_makes_them_all_one():
    """EncapNet, section A.i: votes that lie close together have costs far below zero."""
    capsules = children("linear-vector")
    close = capsules._replace(poses=1e-6 * capsules.poses)
    plain = layer("linear-vector", "em", temperature=10.0)(close, 3).capsules.activations
    standard = layer("linear-vector", "em", temperature=10.0, normalise=True)(close, 3).capsules.activations
    assert plain.min() > 1 - 1e-9
    assert standard.min() < 0.4 and standard.max() > 0.6
    single = layer("linear-one-parent", "em", normalise=True)(children("linear-one-parent"), 2).capsules.activations
    assert torch.equal(single, torch.full_like(single, 0.5))


def test_a_class_layer_that_shares_its_transforms_counts_them_once():
    """32 types at 4x4 positions, 10 classes, 4x4 poses: 5,120 weights and 20 betas."""
    layer = CapsuleLayer(LinearTransform(32 * 16, 10, 16, 16, matrix=True, coordinates=True, shared=16), "em")
    assert sum(p.numel() for p in layer.parameters()) == 32 * 10 * 16 + 20
    assert layer.routing.sizes.children == 512


def test_coordinates_move_votes_by_the_place_of_the_child():
    """With zero weights nothing but the coordinates is left: row, then column, in the last column of a 2x2 vote."""
    transform = LinearTransform(6, 1, 4, 4, matrix=True, coordinates=True)
    transform.weight.data.zero_()
    votes = transform(Capsules(torch.randn(1, 2, 3, 1, 4))).dense()[0, 0, :, 0]
    places = [[0, (y + 0.5) / 2, 0, (x + 0.5) / 3] for y in range(2) for x in range(3)]
    torch.testing.assert_close(votes, torch.tensor(places))
    vector = ConvTransform(1, 1, 2, 3, kernel=1, coordinates=True)
    vector.weight.data.zero_()
    torch.testing.assert_close(
        vector(Capsules(torch.randn(1, 1, 2, 1, 2))).dense().flatten(0, 3),
        torch.tensor([[0.5, 0.25, 0], [0.5, 0.75, 0]]),
    )
