"""A routed layer does what its parts say: as they are now, and also where they are a subclass's."""

import copy

import pytest
import torch
from torch import nn

from torchcaps.capsules import Capsules
from torchcaps.cost.operations import count_operations
from torchcaps.encapnet.aide import AideConv2d
from torchcaps.inspect.agreement import measure_agreement
from torchcaps.inspect.couplings import share_maps
from torchcaps.layers import (
    CapsuleLayer,
    CapsuleStack,
    ConvTransform,
    Coordinates,
    LinearTransform,
    set_forms,
    use_implementation,
)
from torchcaps.layers.normalised import NormalisedTransform
from torchcaps.models import create_model

pytest.importorskip("numba")


@pytest.mark.parametrize("images", [1, 12])
@pytest.mark.parametrize("gradient", [False, True])
def test_settings_that_change_after_a_layer_is_built_count(images, gradient):
    torch.manual_seed(0)
    layer = CapsuleLayer(LinearTransform(20, 5, 8, 16, std=1.0), "dynamic")
    children = Capsules(torch.randn(images, 20, 8))
    with torch.set_grad_enabled(gradient):
        before = layer(children, 3).capsules.poses
        layer.routing.over = "children"
        found = layer(children, 3).capsules.poses
        layer.implementation = "plain"
        assert torch.equal(found, layer(children, 3).capsules.poses)
    assert (found - before).abs().max() > 0.01


def test_a_kernel_that_is_demanded_and_does_not_fit_any_more_is_an_error():
    layer = CapsuleLayer(LinearTransform(20, 5, 8, 16), "dynamic", implementation="fused")
    layer.routing.over = "children"
    with pytest.raises(ValueError, match="implementation is 'fused', but the dynamic kernel takes over 'parents'"):
        layer(Capsules(torch.randn(12, 20, 8)), 3)
    layer.routing = CapsuleLayer(layer.transform, "em").routing
    with pytest.raises(ValueError, match="implementation is 'fused', but it is another routing now"):
        layer(Capsules(torch.randn(12, 20, 8), torch.rand(12, 20)), 3)


class Silenced(CapsuleLayer):
    def votes(self, children):
        return super().votes(Capsules(torch.zeros_like(children.poses)))


@pytest.mark.parametrize("gradient", [False, True])
def test_votes_of_a_subclass_are_taken_whatever_runs(gradient):
    layer = Silenced(LinearTransform(20, 5, 8, 16), "dynamic")
    with torch.set_grad_enabled(gradient):
        assert not layer(Capsules(torch.randn(1, 20, 8)), 3).capsules.poses.any()


def test_votes_behind_a_norm_are_not_folded():
    with pytest.raises(ValueError, match="votes that pass a batch norm cannot be scaled by their weights"):
        CapsuleLayer(NormalisedTransform(6, 3, 4, 4), "discriminative").fold()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_no_images_have_no_capsules_in_a_network_that_shares_its_votes(device):
    with torch.device(device):
        model = create_model("capnet-6-em", num_classes=3, in_channels=3, image_size=(32, 32)).eval()
        assert model(torch.empty(0, 3, 32, 32)).scores.shape == (0, 3)


def test_parts_keep_their_modes():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2).eval(), nn.Flatten())
    count_operations(module, torch.zeros(1, 1, 5, 5))
    assert [each.training for each in module] == [True, False, True]
    with pytest.raises(RuntimeError):
        count_operations(module, torch.zeros(1, 4, 5, 5))
    assert module.training and not module[1].training


def test_agreement_is_measured_without_what_serves_the_routing_alone():
    """The last element of a self-routing vote is its logit, which no parent has."""
    model = create_model("small-resnet.self-routing", num_classes=3, in_channels=1, image_size=(8, 8))
    (found,) = measure_agreement(model, [(torch.rand(2, 1, 8, 8), torch.tensor([0, 2]))]).values()
    assert found.routing == "self-routing" and sum(found.share) == pytest.approx(100)


def test_places_of_a_sequence_stand_in_one_row():
    torch.manual_seed(0)
    conv = CapsuleLayer(ConvTransform(2, 3, 4, 4, kernel=3, dims=1), "dynamic")
    linear = CapsuleLayer(LinearTransform(5 * 3, 4, 4, 5), "dynamic")
    steps = {}
    stack = CapsuleStack([conv, linear], 2)
    stack(Capsules(torch.randn(2, 7, 2, 4)), visit=lambda level, t, step: steps.__setitem__(level, step))
    maps = share_maps(linear, steps[0].capsules, steps[1])
    assert maps.shape == (2, 4, 1, 5)
    torch.testing.assert_close(maps.sum(1), torch.ones(2, 1, 5))


@pytest.mark.parametrize("assigned", [False, True])
@pytest.mark.parametrize("kind", ["self-routing", "aide"])
def test_a_module_of_the_meta_device_is_whole_once_its_weights_are_there(kind, assigned, monkeypatch):
    """`to_empty` leaves any numbers in what no file holds, here NaN."""

    def build() -> nn.Module:
        if kind == "aide":
            return AideConv2d(capsules=3, in_pose=4, out_pose=2, kernel=3, stride=1)
        return CapsuleLayer(LinearTransform(6, 4, 8, 5), kind)

    made = build()
    with torch.device("meta"):
        empty = build()
    monkeypatch.setattr(torch, "empty_like", lambda x, device, **_: torch.ones(x.shape, device=device) * torch.nan)
    empty = empty if assigned else empty.to_empty(device="cpu")
    monkeypatch.undo()
    empty.load_state_dict(copy.deepcopy(made.state_dict()), assign=assigned)
    inputs, found = torch.randn(2, 12, 5, 5) if kind == "aide" else Capsules(torch.randn(2, 6, 8), torch.rand(2, 6)), []
    for module in (made, empty):
        result = module(inputs)
        result = result if kind == "aide" else result.capsules.poses
        result.square().sum().backward()
        found.append([result, *(p.grad for p in module.parameters())])
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs) and not ours.isnan().any()


def test_an_implementation_that_one_layer_refuses_changes_none():
    def stacked(*routings):
        return CapsuleStack([CapsuleLayer(LinearTransform(4, 4, 8, 8), each) for each in routings])

    stack = stacked("dynamic", "uniform")
    with pytest.raises(ValueError, match="fused"):
        use_implementation(stack, "fused")
    assert [layer.implementation for layer in stack.layers] == ["auto", "auto"]
    with pytest.raises(ValueError, match=r"the form of layer 'layers\.1' is 'quick'"):
        set_forms(stack, {"layers.0": {"cpu": "plain"}, "layers.1": {"cpu": "quick"}})
    assert not stack.layers[0].chosen


def test_a_stack_takes_layers_from_anywhere_once():
    layers = (CapsuleLayer(LinearTransform(4, 4, 8, 8), "dynamic") for _ in range(2))
    assert len(CapsuleStack(layers).layers) == 2


@pytest.mark.parametrize("coordinates", [False, True, Coordinates(0.0, 0.1)])
def test_reset_parameters_fill_all_that_a_transform_holds(coordinates):
    torch.manual_seed(0)
    transform = ConvTransform(3, 2, 4, 4, coordinates=coordinates)
    wanted = {name: value.clone() for name, value in transform.state_dict().items()}
    with torch.no_grad():
        for each in (*transform.parameters(), *transform.buffers()):
            each.fill_(torch.nan)
    torch.manual_seed(0)
    transform.reset_parameters()
    torch.testing.assert_close(transform.state_dict(), wanted, rtol=0, atol=0)
