"""What is dead is counted and left out, and nothing else changes."""

import pytest
import torch

from torchcaps import create_model
from torchcaps.models.smaller import SelectedTransform, count_zeros, fold, prune, sizes_of

TYPES, PLACES = 5, 9  # primary capsules of the network below


def network(hidden=(), seed=0, bias=False):
    """A narrow network in float64, every coefficient of which is random, and large enough for three layers."""
    torch.manual_seed(seed)
    options = {"channels": 4, "primary": TYPES, "kernel": 9, "hidden": hidden, "decoder": False}
    model = create_model("capsnet", image_size=21, routing="discriminative", routing_bias=bias, **options).double()
    for layer in model.stack.layers:
        torch.nn.init.normal_(layer.routing.coefficient, std=5.0)
        if bias:
            torch.nn.init.normal_(layer.routing.bias, std=0.1)
    return model


def kill(layer, rows):
    layer.routing.coefficient.data[rows] = 0


def images():
    return torch.rand(3, 1, 21, 21, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def agrees(pruned, model):
    scores = model(images()).scores
    assert scores.min() > 1e-6
    torch.testing.assert_close(pruned(images()).scores, scores, rtol=1e-10, atol=0)
    return True


def test_zeros_and_dead_children_are_counted():
    model = network(hidden=(4,))
    kill(model.stack.layers[0], [0, 3])
    model.stack.layers[0].routing.coefficient.data[7, 1] = 0
    first, second = count_zeros(model)
    assert first == ("stack.layers.0", 45 * 4, 2 * 4 + 1, 45, 2)
    assert second == ("stack.layers.1", 4 * 10, 0, 4, 0)
    assert count_zeros(create_model("capsnet", channels=2, primary=1)) == []


def test_a_filter_goes_only_when_its_type_is_dead_at_every_place():
    model = network()
    kill(model.stack.layers[0], range(PLACES, 2 * PLACES))  # type 1 everywhere
    kill(model.stack.layers[0], range(3 * PLACES, 4 * PLACES - 1))  # type 3 at all places but one
    pruned = prune(model)
    assert agrees(pruned, model)
    assert pruned.primary.conv.weight.shape[0] == 8 * (TYPES - 1) == pruned.primary.conv.out_channels
    assert pruned.stack.layers[0].transform.sizes.children == 3 * PLACES + 1
    assert isinstance(pruned.stack.layers[0].transform, SelectedTransform)
    assert count_zeros(pruned)[0].dead == 0 and count_zeros(model)[0].dead == 2 * PLACES - 1


def test_a_pruned_network_is_pruned_again():
    model = network(hidden=(4,))
    kill(model.stack.layers[0], [*range(PLACES), PLACES + 3])
    once = prune(model)
    kill(once.stack.layers[0], [0, *range(PLACES - 1, 2 * PLACES - 1)])  # one more, and all of another type
    twice = prune(once)
    assert agrees(twice, once) and sizes_of(twice) == (TYPES - 2, 3 * PLACES - 2, 4)


def test_without_single_dead_capsules_the_layer_stays_a_plain_one():
    model = network()
    kill(model.stack.layers[0], range(PLACES))
    transform = prune(model).stack.layers[0].transform
    assert type(transform).__name__ == "LinearTransform" and transform.sizes.children == (TYPES - 1) * PLACES
    whole = prune(network())
    assert agrees(whole, network()) and whole.stack.layers[0].transform.sizes.children == TYPES * PLACES


@pytest.mark.parametrize("bias", [False, True])
def test_a_dead_hidden_capsule_takes_along_what_served_it_alone(bias):
    model = network(hidden=(6, 4), bias=bias)
    kill(model.stack.layers[2], [1])
    kill(model.stack.layers[1], [0, 5])
    only = model.stack.layers[0].routing.coefficient.data[4]
    only[[1, 2, 3, 4]] = 0  # child 4 reaches hidden capsules 0 and 5 only
    pruned = prune(model)
    assert agrees(pruned, model)
    assert [tuple(layer.transform.sizes)[:2] for layer in pruned.stack.layers] == [(44, 4), (4, 3), (3, 10)]


def test_a_pruned_network_is_a_copy_that_folds_and_learns_on():
    model = network()
    kill(model.stack.layers[0], range(PLACES + 2))
    pruned = prune(model)
    assert model.stack.layers[0].transform.sizes.children == TYPES * PLACES and pruned.origin is None
    layer, children = pruned.stack.layers[0], pruned(images()).capsules[0]
    torch.testing.assert_close(layer.fold()(children).capsules.poses, layer(children).capsules.poses)
    output = pruned(images())
    goal = pruned.objective(output, torch.eye(10).double()[:3])
    (gradient,) = torch.autograd.grad(goal, pruned.coefficients())
    assert gradient.shape == (TYPES * PLACES - PLACES - 2, 10) and gradient.abs().sum() > 0


def test_fixed_coefficients_stay_fixed():
    model = create_model("discriminative-capsnet", image_size=21, channels=4, primary=2, fixed=True, initial=0.5)
    kill(model.stack.layers[0], [3])
    pruned = prune(model)
    assert pruned.coefficients() == [] and "coefficient" in dict(pruned.stack.layers[0].routing.named_buffers())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: create_model("capsnet", channels=2, primary=1), "'dynamic' has no constant couplings"),
        (lambda: torch.nn.Identity(), "Identity cannot be pruned"),
    ],
)
def test_what_cannot_be_pruned_is_named(model, message):
    with pytest.raises(ValueError, match=message):
        prune(model())


def test_a_network_of_dead_children_is_named():
    model = network()
    kill(model.stack.layers[0], range(45))
    with pytest.raises(ValueError, match="all 45 children"):
        prune(model)


@pytest.mark.parametrize("smaller", [prune, fold])
def test_what_is_smaller_learns_and_runs_as_the_whole_did(smaller):
    """What was frozen stays so, and evaluation mode is that of all layers."""
    model = network(hidden=(4,))
    kill(model.stack.layers[0], [0, 3])
    made = smaller(model.requires_grad_(False).eval())
    assert not any(each.training for each in made.modules())
    assert not any(each.requires_grad for each in made.parameters())
    made = smaller(model.requires_grad_(True).train())
    assert all(each.training for each in made.modules())
    assert all(each.requires_grad for each in made.parameters())
