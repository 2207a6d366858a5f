"""No layer of any paper's network returns maps channels first when the images are channels last.

One that did would make every layer above it slower, by a copy of its own or by kernels that are slow so.
"""

import encapnet
import frozen
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from torchcaps.layers.decoders import DenseDecoder
from torchcaps.models import Model, create_model

NETWORKS = {
    name: (config.model.name, config.data.image_size or 8, config.model.options)
    for name, config in frozen.RUNS.items()
    if name.startswith(("model ", "routing "))
}
DEEP = {"types": 2, "lengths": (1, 1), "poses": (2, 4)}
NETWORKS |= {
    "decoder": ("fm-resnet-multimnist", 18, {"blocks": (1, 1, 1), "width": 4, "decoder": True}),
    "two units": ("encapnet-v1-feedback", 8, DEEP | {"units": 2}),
    "groups of capsules": ("encapnet-v1-feedback", 8, DEEP | {"groups": "capsules"}),
    "released": ("encapnet-v1", 8, DEEP | {"version": "route2", "aide": "all", "branch_norm": True}),
}


def build(name: str) -> tuple[Model, Tensor]:
    model, size, options = NETWORKS[name]
    torch.manual_seed(0)
    made = create_model(model, num_classes=10, in_channels=3, image_size=size, **options)
    images = torch.rand(3, 3, size, size).contiguous(memory_format=torch.channels_last)
    return convert_conv2d_weight_memory_format(made, torch.channels_last), images


def channels_first(model: Model, images: Tensor) -> tuple[list[str], list[str]]:
    """The modules that return maps [b, c, h, w], and those whose maps are not channels last."""
    seen, found = [], []

    def look(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            seen.append(name)
            cropped = output.stride(1) == 1  # a part of maps that are channels last
            if not (cropped or output.is_contiguous(memory_format=torch.channels_last)):
                found.append(f"{name} {tuple(output.shape)}")

    for name, module in model.named_modules():
        # What a stack holds are capsules; and where a dense layer's vector is seen as maps, or as the image in the end,
        # its elements are in the order of its weights.
        if not (name.startswith("stack") or isinstance(module, nn.Unflatten | DenseDecoder)):
            module.register_forward_hook(lambda module, inputs, output, name=name: look(name, output))
    model(images, torch.arange(len(images)))
    return seen, found


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("name", NETWORKS)
def test_maps_stay_channels_last(name: str, training: bool) -> None:
    model, images = build(name)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=training), torch.set_grad_enabled(training):
        seen, found = channels_first(model.train(training), images)
    assert len(seen) > 2 and not found


def test_a_layer_of_another_layout_is_seen() -> None:
    model, images = build("model encapnet-v*")
    _, found = channels_first(encapnet.first_form(model), images)
    assert any("norm" in each for each in found) and any("skip" in each for each in found)
