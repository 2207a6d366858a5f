"""The roofline: what a machine can do at best, and what each routing has to do.

No pass is faster than the larger of the bytes that it must move (children, weights and parents; thrice with backward,
where they are read again and their gradients are made) over the bandwidth of a copy, and of its operations over the
rate of a matrix product, or on a CPU over that of multiply-adds in registers, which may be more than twice as high.
"""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from report import interleaved

from torchcaps.kernels.simd import LANES, compiled, load, store
from torchcaps.kernels.threads import ranges, run
from torchcaps.layers import Transform

TURNS = 2**18  # of eight multiply-adds of vectors


class Machine(NamedTuple):
    """What a roofline is made of."""

    operations: float  # a second in float32, of a product of two 2048 x 2048 matrices or in registers
    bytes: float  # a second, read and written, of a copy of 256 MiB

    def seconds(self, moved: int, operations: int) -> float:
        return max(moved / self.bytes, operations / self.operations)


class Pass(NamedTuple):
    """How often an iteration makes all votes, or a product as large, and multiply-adds for each of their elements."""

    products: int
    elements: int


class Work(NamedTuple):
    """Of the first iteration and of each that follows, forward and backward."""

    first: Pass
    first_backward: Pass
    later: Pass = Pass(0, 0)
    later_backward: Pass = Pass(0, 0)


SUM = Pass(1, 0), Pass(2, 0)  # of all votes: no vote has to be made
ATTEND = Pass(1, 2), Pass(3, 5)  # agreement and sum; with backward two agreements, the gradients of vote and parent
CLUSTER = Pass(1, 3), Pass(3, 4)  # mean and variance; with backward the gradients of weight and vote
WORK = {
    "uniform": Work(*SUM),
    "discriminative": Work(*SUM),
    "dynamic": Work(*SUM, *ATTEND),
    "xnodr": Work(*SUM, *ATTEND),
    "xnidr": Work(*SUM, *ATTEND),
    "xnodr-xnidr": Work(*SUM, *ATTEND),
    "inverted-attention": Work(*SUM, *ATTEND),
    "inverted-attention-c": Work(*CLUSTER, Pass(1, 4), Pass(3, 7)),  # an agreement besides
    "em": Work(*CLUSTER, Pass(1, 5), Pass(3, 10)),  # a distance besides
    "fm": Work(Pass(1, 4), Pass(3, 9)),  # scale and shift, length, two sums; statistics are not counted
    "self-attention": Work(Pass(3, 2), Pass(7, 5)),  # the sum of all votes, `ATTEND`, and what the prior gives
    "self-routing": Work(Pass(1, 1), Pass(3, 2)),  # the sum with couplings; with backward the gradients of both
    "variational-bayes": Work(*CLUSTER, Pass(1, 5), Pass(3, 10)),
}


def count_operations(
    routing: str, transform: Transform, positions: int, batch: int, iterations: int
) -> tuple[int, int]:
    """Of the forward pass, and of forward and backward, of one layer; two for a multiply-add."""
    children, parents, pose = transform.sizes
    elements = 2 * batch * positions * children * parents * pose
    work, columns = WORK[routing], transform.shape[-2]

    def count(first: Pass, later: Pass) -> int:
        passes = [first] + (iterations - 1) * [later]
        return elements * sum(each.products * columns + each.elements for each in passes)

    forward = count(work.first, work.later)
    return forward, forward + count(work.first_backward, work.later_backward)


def measure_machine(device: torch.device) -> Machine:
    side, size = 2048, 2**26
    matrix, source = torch.randn(side, side, device=device), torch.zeros(size, device=device)
    target = torch.empty_like(source)
    product, copy = interleaved([lambda: matrix @ matrix, lambda: target.copy_(source)], repeats=5)
    rate = 2 * side**3 / median(product)
    return Machine(max(rate, _in_registers()) if device.type == "cpu" else rate, 2 * source.nbytes / median(copy))


def _in_registers() -> float:
    """Operations a second of multiply-adds on all of torch's threads, each with numbers of its own."""
    spans = ranges(torch.get_num_threads())
    numbers = np.zeros((len(spans), LANES), np.float32)
    (seconds,) = interleaved([lambda: run(lambda part, *_: _multiply_adds(numbers[part], TURNS), spans)], repeats=5)
    return len(spans) * TURNS * 8 * LANES * 2 / median(seconds)


@compiled
def _multiply_adds(numbers, turns):
    """Eight sums of vectors, as many as hide the time that one multiply-add takes."""
    x = load(numbers, 0)
    a0, a1, a2, a3, a4, a5, a6, a7 = x, x + 1.0, x + 2.0, x + 3.0, x + 4.0, x + 5.0, x + 6.0, x + 7.0
    for _ in range(turns):
        a0, a1, a2, a3 = a0 * x + a0, a1 * x + a1, a2 * x + a2, a3 * x + a3
        a4, a5, a6, a7 = a4 * x + a4, a5 * x + a5, a6 * x + a6, a7 * x + a7
    store(numbers, 0, a0 + a1 + a2 + a3 + a4 + a5 + a6 + a7)
