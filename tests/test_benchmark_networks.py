"""The networks that training is timed against compute what the library's do."""

import networks
import pytest
import torch

from torchcaps.layers import CapsuleStack
from torchcaps.models import create_model

SMALL = {  # options of each case's network
    "capsnet": {"channels": 4, "primary": 2, "hidden": (5,)},
    "attention-resnet-cifar10, 2 iterations": {"channels": 4, "capsules": 2, "pose": 4},
    "attention-resnet-cifar10, 4 iterations": {"channels": 4, "capsules": 2, "pose": 4},
}


@pytest.fixture(params=networks.CASES)
def bench(request):
    case = networks.CASES[request.param]
    torch.set_default_dtype(torch.float64)
    made = networks.Bench(case, 2)
    channels, *side = case.image
    options = {**SMALL[request.param], "iterations": case.iterations}
    made.model = create_model(case.model, num_classes=10, in_channels=channels, image_size=tuple(side), **options)
    for parameter in made.model.primary.parameters():
        parameter.data *= 8  # so that votes agree by more than nothing
    yield made
    torch.set_default_dtype(torch.float32)


def test_the_einsum_form_has_the_loss_and_gradients_of_the_library(bench):
    assert max(bench.difference().values()) < 1e-10
    skipped = networks.EinsumStack(bench.stack, every=False)
    capsules = bench.model(bench.images).capsules
    routed = skipped(capsules[0])[-1].capsules.poses
    torch.testing.assert_close(routed, capsules[-1].poses, rtol=1e-10, atol=1e-12)


def test_a_difference_is_seen(bench):
    bench.stack.iterations -= 1
    fewer = bench.einsum()
    bench.stack.iterations += 1
    bench.einsum = lambda: fewer
    assert bench.difference()["gradients"] > networks.TOLERANCE


def test_every_step_is_computed_unless_those_that_reach_nothing_are_skipped(bench):
    stack = bench.stack
    assert isinstance(stack, CapsuleStack)
    every = networks.EinsumStack(stack, every=True).plan
    assert len(every) == len(stack.layers) * stack.iterations
    assert (networks.EinsumStack(stack, every=False).plan < every) == (stack.schedule == "concurrent")


def test_goals_are_those_of_the_issue():
    assert {name: case.goal for name, case in networks.CASES.items()} == {
        "capsnet": 3,
        "attention-resnet-cifar10, 2 iterations": 5,
        "attention-resnet-cifar10, 4 iterations": 5,
    }
    assert networks.CAPSULES_GOAL == 0.15
