"""Costs against what can be counted by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchcaps.capsules import Capsules
from torchcaps.cost import Cost, measure_cost
from torchcaps.cost.operations import count_operations
from torchcaps.layers import CapsuleLayer, LinearTransform
from torchcaps.models import Model, Output


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


def test_constants_and_weights_are_no_activations() -> None:
    class Scaled(Wrapped):
        def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
            return Output(images.flatten(1) * self.layers[0].weight * torch.full((12,), 2.0))

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
