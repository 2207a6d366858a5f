"""What routings have to do, by formula, beside what torch counts of the fused steps; and what a bound is."""

import pytest
import roofline
import torch
from routing import ITERATIONS, Size, build
from torch.utils.flop_counter import FlopCounterMode

from torchcaps.layers import ConvTransform, LinearTransform
from torchcaps.routing import list_routings

SIZES = {
    "linear": Size(lambda: LinearTransform(50, 6, 4, 5), (50, 4), 16, 1),
    "conv": Size(lambda: ConvTransform(2, 3, 4, 4, stride=2, matrix=True), (5, 5, 2, 4), 3, 4),
}
FUSED = [(name, routing) for name in SIZES for routing in ("inverted-attention", "em")]
FUSED += [("linear", "dynamic"), ("linear", "xnidr")]


def test_every_routing_is_measured_and_has_its_operations():
    names = {spec.name for spec in list_routings()}
    assert set(ITERATIONS) == set(roofline.WORK) == names
    assert all(ITERATIONS[spec.name] > 1 for spec in list_routings() if spec.iterative)


@pytest.mark.parametrize(("name", "routing"), FUSED)
def test_operations_are_those_that_torch_counts(name, routing):
    size = SIZES[name]
    pair = build(size, routing, size.batch, torch.device("cpu"), 3, "fused")
    counted = []
    for run in (pair.ours, lambda: pair.ours().sum().backward()):
        with FlopCounterMode(display=False) as counter:
            run()
        counted.append(counter.get_total_flops())
    formula = roofline.count_operations(routing, pair.layer.transform, size.positions, size.batch, 3)
    assert list(formula) == counted


def test_the_bound_is_the_larger_of_two():
    machine = roofline.Machine(operations=100.0, bytes=10.0)
    assert machine.seconds(moved=20, operations=100) == 2.0
    assert machine.seconds(moved=20, operations=300) == 3.0
