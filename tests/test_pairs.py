"""Which children agree, and the singular values of what is made of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from torchcaps.capsules import Capsules
from torchcaps.inspect import measure_jacobian, pairs, trace_pairs
from torchcaps.inspect.couplings import Box, locate_children
from torchcaps.inspect.jacobian import given_votes
from torchcaps.inspect.pairs import fm_votes
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, LinearTransform, PooledTransform
from torchcaps.models import Model, Output, create_model

IMAGES = {"num_classes": 3, "in_channels": 1, "image_size": 12}
SMALL = IMAGES | {"blocks": (1, 1), "width": 4, "primary": 2, "pose": 4, "capsules": (3,)}


def build(**options: object) -> Model:
    torch.manual_seed(0)
    model = create_model("fm-resnet-cifar10", **SMALL | options)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.3)
    return model


@pytest.mark.parametrize("options", [{}, {"l2": False}, {"mean": False}, {"halved": False}, {"batch_norm": "none"}])
def test_all_pairs_add_up_to_the_activation(options: dict) -> None:
    model = build(**options)
    images = torch.rand(2, 1, 12, 12)
    layers = trace_pairs(model, images, parents=3, pairs=10_000)
    assert [(layer.name, layer.top) for layer in layers] == [("stack.0", False), ("stack.1", True)]
    capsules = model(images).capsules
    for layer, above, count in zip(layers, capsules[1:], (18 * 17 // 2, 3), strict=True):
        assert layer.products.shape == (2, 3, count)
        torch.testing.assert_close(layer.activations, above.activations.gather(1, layer.parents))
        torch.testing.assert_close(layer.products.sum(-1), layer.activations, rtol=1e-4, atol=1e-5)
        assert (layer.products.diff(dim=-1) <= 0).all() and (layer.activations.diff(dim=-1) <= 0).all()
        assert (layer.places >= 0).all() and (layer.places <= 1).all()


def test_the_strongest_pair_is_found_by_loops() -> None:
    model = build()
    images = torch.rand(1, 1, 12, 12)
    layer, top = trace_pairs(model, images, parents=1, pairs=2)
    assert layer.ring is None
    votes = fm_votes(model.get_submodule("stack.layers.0"), model(images).capsules[0])[0].detach()
    torch.testing.assert_close(votes.norm(dim=-1), torch.ones(18, 3))
    j = int(layer.parents[0, 0])
    best = max((float(votes[i, j] @ votes[k, j]), i, k) for i in range(18) for k in range(i))
    assert layer.products[0, 0, 0].item() == pytest.approx(best[0] / 18, rel=1e-5)
    places = [[(i % 9 // 3 + 0.5) / 3, (i % 3 + 0.5) / 3] for i in sorted(best[1:])]
    torch.testing.assert_close(layer.places[0, 0, 0], torch.tensor(places))
    votes = fm_votes(model.get_submodule("stack.layers.1"), model(images).capsules[1])[0].detach()
    j = int(top.parents[0, 0])
    best = max((float(votes[i, j] @ votes[k, j]), i, k) for i in range(3) for k in range(i))
    assert top.products[0, 0, 0].item() == pytest.approx(best[0] / 3, rel=1e-5) and top.ring is not None
    assert {tuple(place) for place in top.places[0, 0, 0].tolist()} == {
        tuple(top.ring[child].tolist()) for child in best[1:]
    }


def test_children_that_stand_nowhere_stand_on_a_circle() -> None:
    places = pairs.circle(4)
    torch.testing.assert_close(places, torch.tensor([[0.1, 0.5], [0.5, 0.9], [0.9, 0.5], [0.5, 0.1]]))


class Pooled(Model):
    """Six types of children at 6 x 6 places, whose means vote for three parents: the classes, at the `top`."""

    def __init__(self, top: bool):
        super().__init__()
        self.conv, self.top = nn.Conv2d(1, 6 * 8, 5, stride=4), top
        self.stack = CapsuleStack([CapsuleLayer(PooledTransform(6, 3, 8, 8), "fm")])

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        children = Capsules(self.conv(images).unflatten(1, (6, 8)).permute(0, 3, 4, 1, 2))
        parents = self.stack(children)[-1].capsules
        scores = parents.activations if self.top else parents.activations.sum(1, keepdim=True)
        return Output(scores, (children, parents), {})


def test_types_that_are_pooled_stand_nowhere() -> None:
    """Their numbers were read as those of places: all six stood in the first row."""
    torch.manual_seed(0)
    images = torch.rand(2, 1, 28, 28)
    (layer,) = trace_pairs(Pooled(True), images, pairs=15)
    assert layer.ring is not None
    torch.testing.assert_close(layer.ring, pairs.circle(6))
    stood = {tuple(place) for place in layer.places.flatten(0, -2).tolist()}
    assert stood == {tuple(place) for place in layer.ring.tolist()}
    assert trace_pairs(Pooled(False), images) == []


def test_what_the_border_cuts_off_moves_no_place() -> None:
    """Fields of 11 pixels, two apart, the first with its middle on pixel 1: five of them lie before the border."""
    model = build(blocks=(1,), capsules=(), image_size=24)
    (layer,) = trace_pairs(model, torch.rand(4, 1, 24, 24), pairs=40)
    box = locate_children(model, torch.rand(4, 1, 24, 24))["stack.0"]
    assert box == pytest.approx(Box(0.5 / 24, 0.5 / 24, 1.0, 1.0))
    assert {round(12 * place - 0.75, 4) % 1 for place in layer.places.flatten().tolist()} == {0}


@pytest.mark.parametrize("block", [1, 40, 100])
def test_pairs_are_the_same_by_blocks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    model, images = build(), torch.rand(2, 1, 12, 12)
    whole, *_ = trace_pairs(model, images, parents=2, pairs=30)
    monkeypatch.setattr(pairs, "BLOCK", block)
    parts, *_ = trace_pairs(model, images, parents=2, pairs=30)
    torch.testing.assert_close(parts.products, whole.products)
    assert torch.equal(parts.places, whole.places)


def test_a_single_child_has_no_pairs() -> None:
    single = create_model("fm-resnet-affnist", image_size=8, primary=1, width=4)
    assert single.eval()(torch.rand(1, 1, 8, 8)).capsules[0].poses.shape[1:4] == (1, 1, 1)
    assert trace_pairs(single, torch.rand(1, 1, 8, 8)) == []


def test_other_networks_have_no_pairs() -> None:
    assert trace_pairs(build(routing="dynamic"), torch.rand(1, 1, 12, 12)) == []
    children = Capsules(torch.rand(1, 3, 3, 2, 4))
    with pytest.raises(ValueError, match="'dynamic' sums no pairs"):
        fm_votes(CapsuleLayer(LinearTransform(18, 2, 4, 4)), children)
    with pytest.raises(ValueError, match="parents have positions"):
        fm_votes(CapsuleLayer(ConvTransform(2, 2, 4, 4), "fm"), children)


def test_given_votes_are_the_votes() -> None:
    votes = torch.randn(2, 3, 4, 5)
    assert torch.equal(given_votes(votes).dense()[:, 0], votes)


@pytest.mark.parametrize("options", [{}, {"mean": False}, {"halved": False}, {"l2": False}, {"batch_norm": "none"}])
def test_singular_values_of_fm_are_those_of_the_formula(options: dict) -> None:
    """d a_j / d v_ijf = (sum_k v_kjf - v_ijf) / n: parents share no votes, so a row's length is its singular value."""
    model = build(**options, capsules=()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.rand(6, 1, 12, 12)
    (found,) = measure_jacobian(model, images, count=2)
    (poses,) = measure_jacobian(model, images, count=2, of="poses")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    votes = fm_votes(model.get_submodule("stack.layers.0"), model(images).capsules[0])
    factor = (1 if options.get("mean") is False else 1 / 18) * (2 if options.get("halved") is False else 1)
    slope = factor * (votes.sum(1, keepdim=True) - votes)[:2]  # [b, i, j, d]
    rows = slope.square().sum((1, 3)).sqrt()  # [b, j]
    torch.testing.assert_close(found.largest, rows.amax(1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.smallest, rows.amin(1), rtol=1e-4, atol=1e-6)
    elements = slope.square().sum(1).sqrt().flatten(1)  # [b, (j d)]
    torch.testing.assert_close(poses.largest, elements.amax(1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(poses.smallest, elements.amin(1), rtol=1e-4, atol=1e-6)


def einsum_dynamic(votes: Tensor, iterations: int) -> Tensor:
    """Lengths [j] of the parents of votes [i, j, d] by dynamic routing."""
    logits, parents = torch.zeros(votes.shape[:2]), torch.empty(0)
    for _ in range(iterations):
        total = torch.einsum("ij,ijd->jd", logits.softmax(1), votes)
        square = total.square().sum(-1, keepdim=True)
        parents = square / (1 + square) * total / square.sqrt()
        logits = logits + torch.einsum("ijd,jd->ij", votes, parents)
    return parents.norm(dim=-1)


def test_singular_values_of_an_iterative_routing() -> None:
    model = build(routing="dynamic", capsules=(), iterations=3).train()
    images = torch.rand(5, 1, 12, 12)
    (found,) = measure_jacobian(model, images, count=1)
    votes = model.get_submodule("stack.layers.0").votes(model(images).capsules[0])
    dense = votes.dense()[0, 0].detach()
    jacobian = torch.autograd.functional.jacobian(lambda v: einsum_dynamic(v, 3), dense).flatten(1)
    values = torch.linalg.svdvals(jacobian)
    torch.testing.assert_close(found.largest[0], values[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.smallest[0], values[-1], rtol=1e-3, atol=1e-5)


def test_every_layer_of_every_routing_is_measured() -> None:
    for options in ({}, {"routing": "em", "iterations": 2}, {"routing": "dynamic", "iterations": 1}):
        found = measure_jacobian(build(**options), torch.rand(4, 1, 12, 12), count=2)
        assert [each.layer for each in found] == ["stack.0", "stack.1"]
        assert all((each.largest >= each.smallest).all() and each.largest.isfinite().all() for each in found)


def test_a_measure_between_two_steps_leaves_the_random_numbers() -> None:
    model = nn.Sequential(nn.Dropout(0.5), build())
    before = torch.get_rng_state()
    found = measure_jacobian(model, torch.ones(4, 1, 12, 12), 1)  # pyright: ignore[reportArgumentType]
    assert found and torch.equal(torch.get_rng_state(), before)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="count is 0"):
        measure_jacobian(build(), torch.rand(2, 1, 12, 12), count=0)
    with pytest.raises(ValueError, match="of is 'votes'"):
        measure_jacobian(build(), torch.rand(2, 1, 12, 12), of="votes")


def test_how_many_images_are_asked_for_changes_nothing_of_the_first():
    """Also where a norm over all images stands between them."""
    torch.manual_seed(0)
    model = create_model("small-resnet.variational-bayes", num_classes=3, in_channels=1, image_size=(8, 8), width=4)
    images = torch.rand(4, 1, 8, 8)
    (one,), (all_,) = (measure_jacobian(model, images, count=count) for count in (1, 4))
    torch.testing.assert_close(one.largest[0], all_.largest[0])
    assert one.largest[0] > 0 and len(all_.largest) == 4
