"""Where a training step's time goes: each operation has one share, forward and backward."""

import json
from types import SimpleNamespace

import tiny  # noqa: F401 - registers the network `tiny`
import torch
from torch import nn

from torchcaps.cli import main
from torchcaps.config import Config, LossConfig
from torchcaps.models import HeadedModel
from torchcaps.models.heads import CapsuleHead
from torchcaps.train import profile
from torchcaps.train.profile import SHARES, profile_step


def network(norm=True):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 16, 3), *([nn.BatchNorm2d(16)] if norm else []), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return HeadedModel(nn.Sequential(*layers, nn.Flatten()), CapsuleHead("dynamic", 16, 3, implementation="plain"))


def event(name, start=0, length=1, parent=None, number=-1):
    range_ = SimpleNamespace(start=start, elapsed_us=lambda: length * 1e6)
    return SimpleNamespace(name=name, time_range=range_, cpu_parent=parent, sequence_nr=number)


def test_an_operation_and_its_gradient_belong_to_the_innermost_module_and_to_capsules_before_all():
    whole, conv = event("torchcaps.share:rest"), None
    conv = event("torchcaps.share:convolutions", parent=whole)
    stack = event("torchcaps.share:capsules", parent=whole)
    inner = event("torchcaps.share:norms", parent=stack)
    convolve = event("aten::conv2d", 1, 5, conv, number=7)
    backward = event("autograd::engine::evaluate_function: ConvolutionBackward0", 20, 11, number=7)
    step = event("Optimizer.step#Adam.step", 40, 4)
    events = [
        *(whole, conv, stack, inner, convolve, backward, step),
        event("aten::convolution", 1, 4, convolve, number=7),  # inside of another operation: counted once
        event("aten::layer_norm", 2, 2, inner),
        event("aten::relu", 3, 3, whole),
        event("aten::mean", 4, 7, number=9),
        event("autograd::engine::evaluate_function: MeanBackward0", 19, 1, number=9),
        event("aten::convolution_backward", 20, 10, backward),
        event("aten::add_", 41, 3, step),
    ]
    found = profile._shares(events)
    assert found == {"convolutions": 16, "capsules": 2, "rest": 3, "loss": 8, "optimiser": 4}


def test_every_share_that_a_network_has_takes_time_and_no_other_does():
    config = Config(loss=LossConfig("margin"), batch_size=8, precision="fp32")
    found = profile_step(network(), config, (1, 12, 12), 3, repeats=1)
    assert tuple(found) == SHARES
    assert all(found[share] > 0 for share in SHARES if share != "between")
    assert profile_step(network(norm=False), config, (1, 12, 12), 3, repeats=1)["norms"] == 0


def test_the_command_prints_the_shares(capsys):
    command = "cost tiny --image-size 8 --channels 2 --classes 5 --options width 3 --profile --batch-size 4"
    assert main(command.split()) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[:-1]] == list(SHARES)
    assert "images a second" in said[-1]
    assert main([*command.split(), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(SHARES)


def test_no_images_are_refused(capsys):
    assert main(["cost", "tiny", "--image-size", "8", "--profile", "--batch-size", "0"]) == 2
    assert "batch_size is 0; it must be at least 1 image" in capsys.readouterr().err
