"""Costs against what can be counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from torchcaps.capsules import Capsules
from torchcaps.cost import Cost, measure_cost
from torchcaps.cost.operations import count_operations
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, LinearTransform
from torchcaps.models import CapsuleHead, HeadedModel, Model, Output
from torchcaps.packed import pack
from torchcaps.routing import list_routings

ROUTINGS = [spec.name for spec in list_routings()]
OPTIONS = [  # what else changes how often a plain step goes through W
    *((name, {}) for name in ROUTINGS),
    ("dynamic", {"gradients": "last"}),
    ("dynamic", {"start": "learnt"}),
    ("em", {"scope": "window"}),
    ("fm", {"l2": False}),
    ("fm", {"batch_norm": None}),
    ("fm", {"batch_norm": "child"}),
    ("fm", {"batch_norm": "pair"}),
]


class Wrapped(Model):
    """Any network from images to scores as a model."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        return Output(self.layers(images))


def test_dense_network_is_counted_by_hand() -> None:
    model = Wrapped(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))
    parameters = 12 * 5 + 5 + 5 * 3 + 3
    held = 12 + 5  # the images, and the output of ReLU: once, though two operations keep it
    operations = 2 * (12 * 5 + 5 * 3) + 5 + 3 + 5  # two a multiply-add, the biases, and ReLU
    assert measure_cost(model, (2, 3), 2) == Cost(parameters, 12 * 5 + 5 * 3, 4 * held, 4 * parameters, operations)


def test_convolution_counts_each_position() -> None:
    model = Wrapped(nn.Conv2d(2, 4, 3, stride=2, bias=False), nn.Flatten())
    cost = measure_cost(model, 9, 2)
    assert cost.multiply_adds == 4 * 4 * (2 * 3 * 3) * 4
    assert cost.activation_memory == 4 * 2 * 9 * 9


def test_every_operation_of_a_layer_is_counted() -> None:
    """Uniform routing by hand: one matrix product, divided by j, squashed."""
    i, c, j, d = 6, 4, 3, 5
    layer = CapsuleLayer(LinearTransform(i, j, c, d), "uniform")
    squashed = 3 * j * d + 5 * j  # squares, their sum, the product; 1 + |s|^2, quotient, floor, root, product of both
    assert count_operations(layer, Capsules(torch.rand(1, i, c))) == 2 * i * c * j * d + j * d + squashed


def test_pooling_batch_norm_and_softmax_have_their_own_counts() -> None:
    maps = torch.rand(2, 3, 8, 8)
    assert count_operations(nn.MaxPool2d(2), maps) == 2 * 3 * 8 * 8
    assert count_operations(nn.BatchNorm2d(3), maps) == 2 * maps.numel()
    assert count_operations(nn.Softmax(-1), maps) == 3 * maps.numel()
    assert count_operations(nn.AdaptiveAvgPool2d(1), maps) == maps.numel()
    assert count_operations(nn.Conv2d(3, 4, 3), maps) == 2 * 4 * 36 * (2 * 27 + 1)
    assert count_operations(nn.Flatten(), maps) == 0


def routed(form: str, routing: str, implementation: str, **options: object) -> tuple[CapsuleStack, tuple[int, ...]]:
    """Three iterations on the meta device, and the shape of an image's children."""
    with torch.device("meta"):
        if form == "linear":
            transform, shape = LinearTransform(12, 3, 8, 10), (12, 8)
        else:
            transform, shape = ConvTransform(2, 3, 9, 12, 3, stride=2, padding=1, matrix=True), (6, 5, 2, 9)
        return CapsuleStack([CapsuleLayer(transform, routing, implementation, **options)], 3), shape


def children(shape: tuple[int, ...], batch: int) -> Capsules:
    poses = torch.empty(batch, *shape, device="meta", requires_grad=True)
    return Capsules(poses, torch.empty(poses.shape[:-1], device="meta", requires_grad=True))


@pytest.mark.parametrize("form", ["linear", "conv"])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_all_arithmetic_is_that_of_plain_steps_whatever_runs(routing: str, form: str) -> None:
    for batch in (1, 7):  # of so few images votes are kept
        counted = []
        for implementation in ("plain", "auto"):
            stack, shape = routed(form, routing, implementation)
            counted.append(count_operations(stack, children(shape, batch)))
            assert stack.layers[0].implementation == implementation
        assert counted[0] == counted[1] > 0


@pytest.mark.parametrize("form", ["linear", "conv"])
@pytest.mark.parametrize(("routing", "options"), OPTIONS)
def test_the_formula_of_a_fused_step_is_what_torch_counts_of_the_plain_one(
    routing: str, options: dict, form: str
) -> None:
    """Its matrix products, forward and backward, in training mode, where batch norm measures."""
    counted = []
    for implementation in ("plain", "auto"):
        stack, shape = routed(form, routing, implementation, **options)
        capsules = children(shape, 7)
        with FlopCounterMode(display=False) as forward:
            out = stack(capsules)[-1].capsules
        with FlopCounterMode(display=False) as backward:
            sum(x.sum() for x in out if x is not None).backward()
        counted.append((forward.get_total_flops(), backward.get_total_flops()))
    assert counted[0] == counted[1] and min(counted[0]) > 0


def test_a_head_costs_the_same_in_every_implementation() -> None:
    """At the size of MobileNet V2's in Table 9."""
    head = CapsuleHead("xnodr", 1280, 10)
    model = HeadedModel(nn.Flatten(), head)
    costs = []
    for implementation in ("auto", "plain", "fused"):
        head.stack.layers[0].implementation = implementation
        cost = measure_cost(model, (32, 40), 1)
        costs.append((cost.operations, cost.multiply_adds))
    assert costs[0] == costs[1] == costs[2]
    assert costs[0][1] == 5 * 160 * 10 * 8 * 16  # three sums and two agreements
    model.head.stack = pack(head.stack).eval()
    packed = measure_cost(model, (32, 40), 1)  # whose loop torch does not see
    assert packed.multiply_adds == costs[0][1]


def test_constants_and_weights_are_no_activations() -> None:
    class Scaled(Wrapped):
        def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
            weight = self.layers[0].weight
            assert isinstance(weight, Tensor)
            return Output(images.flatten(1) * weight * torch.full((12,), 2.0))

    cost = measure_cost(Scaled(nn.PReLU(12)), (2, 3), 2)
    assert cost.activation_memory == 4 * 12
    assert cost.multiply_adds == 0


def test_model_is_left_as_it_was() -> None:
    model = Wrapped(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 2)).train()
    model.layers[2].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cost = measure_cost(model, 8)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert cost.parameters == 2 + 64 * 2
    assert cost.weight_memory == 4 * (2 + 64 * 2 + 2) + 4 * 2 + 8  # running mean and variance, and a count of int64
