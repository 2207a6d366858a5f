"""The form that capConv layers were first written in, which they are timed against, computes what they do."""

import copy

import encapnet
import pytest
import torch
from torch.nn.utils import convert_conv2d_weight_memory_format

from torchcaps.config import OptimiserConfig
from torchcaps.encapnet.aide import AideConv2d
from torchcaps.losses import margin_loss, multi_hot
from torchcaps.models import create_model
from torchcaps.train.optim import build_optimiser

OPTIONS = {"types": 3, "lengths": (1, 1), "poses": (2, 4)}


def steps(model, dtype, last):
    """Scores of three steps of Adam, and the parameters after them, what joins a capsule with itself left out."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(4, 3, 8, 8, generator=generator).to(dtype)
    if last:
        model = convert_conv2d_weight_memory_format(model, torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    optimizer = build_optimiser(model.parameters(), OptimiserConfig("adam", lr=0.01, weight_decay=0.1))
    scores = []
    for _ in range(3):
        scores.append(model(images).scores)
        optimizer.zero_grad()
        margin_loss(scores[-1], multi_hot(torch.arange(4), 5)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    scores.append(model.eval()(images).scores)
    masks = {f"{name}.weight": each.mask for name, each in model.named_modules() if isinstance(each, AideConv2d)}
    assert masks
    return torch.stack(scores).detach(), {
        name: (value * masks[name] if name in masks else value).detach() for name, value in model.named_parameters()
    }


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
@pytest.mark.parametrize("last", [True, False], ids=["channels-last", "channels-first"])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=["64", "32"])
def test_the_first_form_computes_the_same(version, last, dtype, most):
    torch.manual_seed(0)
    model = create_model("encapnet-v1", num_classes=5, in_channels=3, image_size=8, version=version, **OPTIONS)
    model = model.to(dtype)
    before = encapnet.first_form(model)
    assert {type(each) for each in before.modules() if isinstance(each, AideConv2d)} == {encapnet.MultipliedAide}
    (wanted, theirs), (found, ours) = (steps(each, dtype, last) for each in (before, model))
    torch.testing.assert_close(found, wanted, rtol=most, atol=most)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=most, atol=most, msg=name)


def test_a_difference_is_seen():
    torch.manual_seed(0)
    model = create_model("encapnet-v1", num_classes=5, in_channels=3, image_size=8, **OPTIONS)
    other = copy.deepcopy(model)
    first = next(each for each in other.modules() if isinstance(each, AideConv2d))
    with torch.no_grad():
        first.weight[0, -1] += 0.1
    (scores, _), (wanted, _) = steps(other, torch.float32, True), steps(model, torch.float32, True)
    assert (scores - wanted).abs().max() > 1e-4
