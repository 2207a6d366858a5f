"""Networks of the newer routings: parameters as counted elsewhere, and that they learn."""

from __future__ import annotations

import pytest
import torch

from torchcaps import Capsules, create_model
from torchcaps.layers import LinearTransform
from torchcaps.models.network import CapsuleNetwork
from torchcaps.models.registry import Model

COUNTS = {  # name: (parameters, options)
    "efficient-capsnet-mnist": (161_824, {"decoder": False}),
    "efficient-capsnet-multimnist": (154_656, {"decoder": False}),
    "efficient-capsnet-cifar10": (168_544, {"decoder": False}),
    "self-routing-1-cifar10": (931_664, {}),
    "self-routing-2-cifar10": (3_187_536, {}),
    "resnet20-cifar10": (269_722, {}),
    "variational-bayes-64-8-16-16": (68_714, {"num_classes": 5, "in_channels": 2}),
    "variational-bayes-64-16-16-16": (95_572, {"num_classes": 10}),
    "variational-bayes-64-8-16-16-cifar10": (145_588, {}),
    "variational-bayes-64-16-16-16-cifar10": (172_756, {}),
    "variational-bayes-64-16-32-32-cifar10": (322_836, {}),
}
SMALL = {
    "efficient-capsnet-mnist": {"widths": (4, 4, 4, 16), "image_size": 20},
    "self-routing-1-cifar10": {"width": 2, "capsules": 2, "pose": 4, "image_size": 12},
    "self-routing-2-cifar10": {"width": 2, "capsules": 2, "pose": 4, "image_size": 16},
    "variational-bayes-64-8-16-16": {"channels": 4, "primary": 2, "capsules": (2, 2), "image_size": 20},
}


def parameters(model: Model) -> int:
    return sum(each.numel() for each in model.parameters())


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_those_that_were_counted(name: str) -> None:
    count, options = COUNTS[name]
    shape = {"num_classes": 10} | options
    if name == "variational-bayes-64-16-16-16" or name == "variational-bayes-64-8-16-16":
        shape["image_size"] = 32
    with torch.device("meta"):
        assert parameters(create_model(name, **shape)) == count  # pyright: ignore[reportArgumentType]


def test_the_decoder_is_not_counted_in_them() -> None:
    with torch.device("meta"):
        for name, count in {"efficient-capsnet-mnist": 1_411_344, "efficient-capsnet-multimnist": 1_936_144}.items():
            model = create_model(name)
            assert parameters(model) - COUNTS[name][0] == parameters(model.decoder) == count


@pytest.mark.parametrize("name", SMALL)
def test_networks_learn_in_small(name: str) -> None:
    torch.manual_seed(0)
    options = dict(SMALL[name])
    size = options.pop("image_size")
    model = create_model(name, num_classes=3, in_channels=1, image_size=size, **options)  # pyright: ignore
    with torch.no_grad():  # away from a start at which logits of 0 send nothing back
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    output = model(torch.rand(4, 1, size, size))
    assert output.scores.shape == (4, 3) and output.scores.isfinite().all()
    torch.nn.functional.cross_entropy(output.scores, torch.tensor([0, 1, 2, 0])).backward()
    for each, parameter in model.named_parameters():
        if "decoder" not in each and "beta" not in each:
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), each


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="leaves more than one of 9x9 positions"):
        create_model("efficient-capsnet-mnist", depthwise=5)
    with pytest.raises(ValueError, match=r"pose is 7 and widths"):
        create_model("efficient-capsnet-mnist", pose=7)
    with pytest.raises(ValueError, match="hidden is 2, capsules 32 and pose 16; 0 or 1, and at least 1"):
        create_model("self-routing-1-cifar10", hidden=2)
    with pytest.raises(ValueError, match="convs -1 and stem_padding 0; at least 1"):
        create_model("variational-bayes-64-8-16-16", convs=-1)
    with pytest.raises(ValueError, match="stem_padding -1; at least 1"):
        create_model("variational-bayes-64-8-16-16", stem_padding=-1)
    with pytest.raises(ValueError, match=r"option placement of .* is 'byerly'"):
        create_model("variational-bayes-64-8-16-16", placement="byerly")


def test_variational_bayes_stands_as_released() -> None:
    """16 places lie below the classes, and a vote is told (i + 1) / (10 n) in elements 3 and 7 of its pose."""
    model = create_model("variational-bayes-64-8-16-16", image_size=32)
    assert isinstance(model, CapsuleNetwork)
    transform = model.stack.layers[-1].transform
    assert isinstance(transform, LinearTransform) and transform.shared == 16
    with torch.no_grad():
        transform.weight.zero_()
        children = Capsules(torch.rand(1, 4, 4, 16, 16), torch.ones(1, 4, 4, 16))
        votes = transform(children).dense().reshape(16, 4, 4, -1, 16)  # [type, y, x, j, pose]
    expected = torch.zeros(4, 4, 16)
    expected[..., 3] = torch.tensor([[0.025], [0.05], [0.075], [0.1]])
    expected[..., 7] = torch.tensor([0.025, 0.05, 0.075, 0.1])
    torch.testing.assert_close(votes, expected[None, :, :, None].expand_as(votes))
