"""What routings have to do, by formula, beside what plain steps do; and what a bound is."""

import pytest
import roofline
import torch
from routing import ITERATIONS, Size, build

from torchcaps.cost.operations import OperationCounter
from torchcaps.layers import ConvTransform, LinearTransform
from torchcaps.routing import list_routings

SIZES = {
    "linear": Size(lambda: LinearTransform(50, 6, 4, 5), (50, 4), 16, 1),
    "conv": Size(lambda: ConvTransform(2, 3, 4, 4, stride=2, matrix=True), (5, 5, 2, 4), 3, 4),
}


def test_every_routing_is_measured_and_has_its_operations():
    names = {spec.name for spec in list_routings()}
    assert set(ITERATIONS) == set(roofline.WORK) == names
    assert all(ITERATIONS[spec.name] > 1 for spec in list_routings() if spec.iterative and spec.name in ITERATIONS)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("routing", roofline.WORK)
def test_no_more_is_asked_for_than_plain_steps_do(name, routing):
    """All their arithmetic, forward and with backward; and no less than a third of it."""
    size, iterations = SIZES[name], ITERATIONS[routing]
    pair = build(size, routing, size.batch, torch.device("cpu"), iterations, "plain")
    formula = roofline.count_operations(routing, pair.layer.transform, size.positions, size.batch, iterations)
    for run, asked in zip((pair.ours, lambda: pair.ours().sum().backward()), formula, strict=True):
        with OperationCounter() as counter:
            run()
        assert counter.total / 3 <= asked <= counter.total


def test_the_operations_of_dynamic_routing_by_hand():
    """Votes in each of three iterations; from the second on their agreement and sum."""
    votes, columns = 16 * 50 * 6 * 5, 4  # elements, of products as long as a child's pose
    transform = SIZES["linear"].transform()
    forward, both = roofline.count_operations("dynamic", transform, 1, 16, 3)
    assert forward == 2 * votes * (3 * columns + 2 * 2)
    assert both - forward == 2 * votes * ((2 + 3 + 3) * columns + 2 * 5)


def test_the_bound_is_the_larger_of_two():
    machine = roofline.Machine(operations=100.0, bytes=10.0)
    assert machine.seconds(moved=20, operations=100) == 2.0
    assert machine.seconds(moved=20, operations=300) == 3.0
