"""The table of goals: a row that is equal to its naive form and what its marks say."""

import kernels
import pytest
import torch
from routing import Size

from torchcaps.layers import ConvTransform

SMALL = Size(lambda: ConvTransform(2, 3, 4, 4, stride=2, matrix=True), (5, 5, 2, 4), 3, 4)
SLOW = kernels.Machine(operations=1e6, bytes=1e12)


def test_a_row_is_checked_measured_and_marked():
    row = kernels.Row("inverted-attention", SMALL, 3, forward=1e9, step=1e-9, held=1e-9)
    values = kernels.measure(row, 3, 1, torch.device("cpu"), SLOW)
    assert values["fused"] and values["batch"] == 3 and values["largest_difference"] < 1e-5
    assert values["passed"] == {"forward": False, "step": True, "held": True}
    pairs, product, pose = 3 * 4 * 18 * 3, 2 * 2 * 2, 4
    bound = 1000 * 2 * pairs * (product + 2 * (product + 2 * pose)) / SLOW.operations
    assert values["forward_of_roofline"] * values["forward_ms"] == pytest.approx(bound, rel=0.02)
    assert "--" in kernels.summary("row", values) and "(plain steps)" not in kernels.summary("row", values)


def test_every_row_of_the_issue_is_there():
    goals = [(row.routing, row.iterations, row.forward, row.step, row.held) for row in kernels.ROWS.values()]
    assert goals == [
        ("inverted-attention", 3, 20, 12, 20),
        ("dynamic", 3, 8, 8, 20),
        ("em", 2, 10, 8, 20),
        ("fm", 1, 8, 12, 20),
        ("fm", 1, 10, 8, 20),
        ("xnidr", 3, 10, 8, 20),
        ("xnodr-xnidr", 3, 10, 8, 20),
    ]
