"""The twin of a capsule network: as many parameters, the same windows, stem and decoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from torchcaps import create_model
from torchcaps.compare.comparison import Comparison
from torchcaps.compare.heads import all_heads, choose_heads
from torchcaps.config import ModelConfig
from torchcaps.layers.layer import use_implementation
from torchcaps.models.registry import describe_model, rebuild_model
from torchcaps.models.twin import solve_width, trainable
from torchcaps.revisions import routing_of

SMALL = {  # name: (options, sizes)
    "small-resnet.dynamic": ({"width": 4}, (3, 2, (19, 26))),
    "small-resnet.em": ({"width": 4}, (3, 2, (19, 26))),
    "capsnet": ({"channels": 16, "kernel": 3, "primary": 4, "hidden": (5,)}, (4, 1, (12, 12))),
    "em-simple-cifar10": ({"channels": 16, "capsules": 4}, (10, 3, (20, 20))),
    "attention-simple-cifar100": ({"channels": 16, "capsules": 8}, (10, 3, (20, 20))),
    "self-routing-1-cifar10": ({"width": 4, "capsules": 4}, (3, 3, (16, 16))),
    "variational-bayes-64-8-16-16": ({"channels": 8, "primary": 4, "capsules": (4, 4)}, (5, 2, (20, 20))),
}


def build(name: str, twin: bool):
    options, (classes, channels, size) = SMALL[name]
    name = f"{name}-twin" if twin else name
    torch.manual_seed(0)
    model = create_model(name, num_classes=classes, in_channels=channels, image_size=size, **options)
    use_implementation(model, "plain")
    return model


@pytest.mark.parametrize("name", SMALL)
def test_a_twin_has_as_many_parameters_and_learns(name: str) -> None:
    _, (classes, channels, size) = SMALL[name]
    model, twin = build(name, False), build(name, True)
    assert abs(trainable(twin) / trainable(model) - 1) <= 0.01
    assert twin.origin is not None and twin.origin["name"] == f"{name}-twin"
    output = twin(torch.rand(3, channels, *size))
    assert output.scores.shape == (3, classes) and output.capsules == ()
    assert (twin.scores == "logit") == (model.scores == "logit")
    if twin.scores == "probability":
        assert (output.scores > 0).all() and (output.scores < 1).all()
    if (decoder := getattr(model, "decoder", None)) is not None:
        assert output.aux["reconstruction"].shape == (3, channels, *size)
        assert trainable(twin.decoder) == trainable(decoder)
    (output.scores.sum() + sum(each.sum() for each in output.aux.values())).backward()
    assert all(each.grad is not None for each in twin.parameters())


@pytest.mark.parametrize("name", ["capsnet", "attention-simple-cifar100"])
def test_a_twin_sees_as_much_of_the_image(name: str) -> None:
    """A unit of the last map before the dense layer sees the pixels that a capsule at its place sees."""
    _, (_, channels, size) = SMALL[name]

    def sees(model, capsules: bool) -> Tensor:
        image = torch.rand(1, channels, *size).requires_grad_()
        model.eval()
        if capsules:
            found = model(image).capsules
            top = [each.poses for each in found if each.poses.ndim == 5][-1][:, 0, 0].sum()
        else:
            maps = model.stem(image)
            for layer in model.layers:
                if type(layer).__name__ == "Flatten":
                    break
                maps = layer.forward(maps) if not isinstance(layer, torch.nn.ReLU) else maps  # all paths stay open
            top = maps[:, :, 0, 0].sum()
        (gradient,) = torch.autograd.grad(top, image)
        rows, columns = gradient[0].abs().sum(0).nonzero(as_tuple=True)
        return torch.stack([rows.min(), rows.max(), columns.min(), columns.max()])

    assert torch.equal(sees(build(name, False), True), sees(build(name, True), False))


def test_a_twin_is_built_again_from_its_record() -> None:
    twin = build("small-resnet.em", True)
    assert twin.origin is not None
    other = rebuild_model(twin.origin)
    other.load_state_dict(twin.state_dict())
    images = torch.rand(2, 2, 19, 26)
    assert torch.equal(twin.eval()(images).scores, other.eval()(images).scores)
    assert describe_model(twin.origin)["routing_scope"] == "image"
    assert routing_of(ModelConfig("small-resnet.em-twin")) is None


def test_no_width_and_no_parts_are_said() -> None:
    assert solve_width(lambda width: 7 * width * width + 3, 7 * 400 + 3) == 20
    with pytest.raises(ValueError, match=r"no width gives the twin 150 parameters within 1%: 1 makes 100 and 2"):
        solve_width(lambda width: 100 * width, 150)
    with pytest.raises(ValueError, match="a PlainNetwork has no twin: it must be a stem, primary capsules and"):
        create_model("cnn-simple-cifar10-twin", channels=4)
    with pytest.raises(ValueError, match=r"no model is named 'capsnt'; the nearest is 'capsnet'"):
        create_model("capsnt-twin")


def test_twins_stand_beside_the_heads_of_a_comparison() -> None:
    assert choose_heads(["em"]) == ["linear", "uniform", "twin", "em", "em-twin"]
    assert "inverted-attention-twin" in all_heads() and "xnodr-twin" not in all_heads()
    comparison = Comparison("small-resnet", "digits")
    config = comparison.config("twin")
    assert config.model.name == "small-resnet.dynamic-twin" and config.loss.name == "cross-entropy"
    assert config.model.options == comparison.config("dynamic").model.options
    assert comparison.config("em-twin").model.name == "small-resnet.em-twin"
    assert Comparison(loss="own").config("em-twin").loss.name == "spread"
