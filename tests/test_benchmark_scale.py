"""What grows is measured: votes that are made are seen, lines and slopes are those of known numbers."""

import sys

import numpy as np
import pytest
import scale
import torch
from report import allocated_bytes, resident_bytes
from routing import Pair


def test_memory_is_that_of_torch_at_its_highest():
    def work():
        large = torch.empty(1 << 20)
        del large
        return torch.empty(1 << 18), torch.empty(1 << 18)

    assert allocated_bytes(work) == (1 << 22, 1 << 22)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="pages are counted by Linux")
def test_resident_memory_counts_what_torch_does_not_allocate():
    added = resident_bytes(lambda: np.ones(1 << 22, np.float32))
    assert added == pytest.approx(4 << 22, rel=0.02)


def test_ours_makes_no_votes_and_einsum_does():
    _, votes = scale.along("dynamic", "children", 64)
    assert votes == 4 * 32 * 64 * 16 * 16
    values = scale.sweep((64, 128), lambda value: scale.along("dynamic", "children", value), 1)
    assert not values["votes_made"] and values["held_bytes"][-1] < values["votes_bytes"][-1]
    assert values["naive_held_bytes"][-1] > values["votes_bytes"][-1]
    assert values["naive_peak_bytes"][-1] > 3 * values["votes_bytes"][-1] > 3 * values["peak_bytes"][-1]
    assert values["votes_bytes"][1] == 2 * votes

    def twice(value):
        pair, votes = scale.along("dynamic", "children", value)
        return Pair(pair.plain, pair.plain, pair.layer, pair.poses), votes

    assert scale.sweep((64,) * 2 + (128,), twice, 1)["votes_made"]


def test_a_line_reaches_the_memory_where_it_should():
    sizes = (1, 2, 4, 8, 16)
    assert scale.slope(sizes, [x**2 for x in sizes]) == pytest.approx(2)
    assert scale.fit(sizes, [int(1e9 + 1e9 * x) for x in sizes]) == (23, 0.0)
    assert scale.fit(sizes, [100] * 5) == (None, 0.0)
    assert scale.fit(sizes, [0, 0, 4, 8, 32])[1] > 0.1


@pytest.mark.parametrize("routing", scale.ROUTINGS)
def test_every_axis_has_a_layer_with_a_kernel(routing):
    for axis, sizes in scale.AXES.items():
        assert scale.along(routing, axis, sizes[0])[0].layer.fused
    name, sizes, make = scale.batches_of_goal(routing)
    assert "batch of" in name and make(sizes[0])[0].layer.fused
