"""Time and memory of training steps against children, parents, batch and iterations, by einsum and as layers take them.

A linear layer is grown one axis at a time, each by doubling; so is the batch of the four layers that `kernels` has
goals for. A slope is that of a straight line through the four largest sizes on logarithmic axes: 1 is linear. Peak
memory is children, weights and all that torch allocates during forward and backward, gradients included; scratch memory
that the kernels' loops take without torch is not counted: it grows with the batch and not with the children. Held is
what autograd keeps between forward and backward. Votes would be made where one piece of memory is as large as they are,
at those four sizes (below, weights that are padded to whole vectors are that large).

The largest size that fits 24 GB is not tried: it is where a straight line through the peaks of the three largest sizes
reaches 24e9 bytes, and `fit_error` says how far these lie from it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from operator import ge
from statistics import linear_regression, median

import torch
from kernels import ROWS
from report import allocated_bytes, interleaved, record
from routing import Pair, Size, build, held_bytes, vote_elements

from torchcaps.layers import LinearTransform
from torchcaps.routing import routing_class

ROUTINGS = ("dynamic", "inverted-attention", "em", "fm")
POSE, PARENT_POSE = 8, 16
SLOPED, FITTED = 4, 3  # sizes, the largest, that a slope and a line go through
MEMORY = 24e9  # bytes


@dataclass(frozen=True)
class Point:
    """A linear layer and what runs through it."""

    children: int = 256
    parents: int = 16
    batch: int = 32
    iterations: int = 3

    def size(self) -> Size:
        transform = partial(LinearTransform, self.children, self.parents, POSE, PARENT_POSE)
        return Size(transform, (self.children, POSE), self.batch, 1)


BASE = Point()
AXES = {
    "children": (64, 128, 256, 512, 1024, 2048),
    "parents": (4, 8, 16, 32, 64, 128),
    "batch": (16, 32, 64, 128, 256),
    "iterations": (1, 2, 4, 8),
}
BATCHES = {1: (16, 32, 64, 128), 0: (1, 2, 4, 8)}  # of the layers with goals: linear ones, and others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--routing", choices=ROUTINGS, nargs="+", default=list(ROUTINGS))
    parser.add_argument("--axis", choices=[*AXES, "goal"], nargs="+", default=[*AXES, "goal"])
    flags = parser.parse_args()
    lines = []
    for routing in flags.routing:
        iterative = routing_class(routing).spec.iterative
        for axis in flags.axis:
            if axis == "goal":
                name, sizes, make = batches_of_goal(routing)
            elif axis == "iterations" and not iterative:
                continue
            else:
                name, sizes, make = axis, AXES[axis], partial(along, routing, axis)
            values = sweep(sizes, make, flags.repeats)
            record(f"scale/{routing}/{name}", {"axis": axis, **values})
            lines.append(summary(f"{routing}, {name}", values))
    print("\n".join(lines))


def along(routing: str, axis: str, value: int) -> tuple[Pair, int]:
    """Both forms at one size of an axis, and the bytes of all votes."""
    point = replace(BASE, **{axis: value})
    iterations = point.iterations if routing_class(routing).spec.iterative else 1
    size = point.size()
    pair = build(size, routing, point.batch, torch.device("cpu"), iterations, "auto")
    return pair, 4 * point.batch * vote_elements(size)


def batches_of_goal(routing: str) -> tuple[str, tuple[int, ...], Callable[[int], tuple[Pair, int]]]:
    """The layer of this routing that has goals, at growing batches."""
    name, row = next((name, row) for name, row in ROWS.items() if row.routing == routing)

    def make(batch: int) -> tuple[Pair, int]:
        pair = build(row.size, routing, batch, torch.device("cpu"), row.iterations, "auto")
        return pair, 4 * batch * row.size.positions * vote_elements(row.size)

    return f"batch of {name.partition(', ')[2]}", BATCHES[row.size.positions == 1], make


def sweep(sizes: tuple[int, ...], make: Callable[[int], tuple[Pair, int]], repeats: int) -> dict:
    """Of each size: milliseconds of a step, bytes held, peak and votes; slopes; the largest size in 24 GB."""
    found: dict[str, list] = {"votes_bytes": []}
    for value in sizes:
        pair, votes = make(value)
        found["votes_bytes"].append(votes)
        there = pair.poses.nbytes + sum(weight.nbytes for weight in pair.layer.parameters())
        steps = [stepping(pair, forward) for forward in (pair.plain, pair.ours)]
        seconds = interleaved(steps, repeats)
        for prefix, forward, step, taken in zip(("naive_", ""), (pair.plain, pair.ours), steps, seconds, strict=True):
            peak, largest = allocated_bytes(step)
            found.setdefault(f"{prefix}step_ms", []).append(round(1000 * median(taken), 3))
            found.setdefault(f"{prefix}held_bytes", []).append(held_bytes(forward))
            found.setdefault(f"{prefix}peak_bytes", []).append(there + peak)
            found.setdefault(f"{prefix}largest_piece_bytes", []).append(largest)
    fits = {prefix: fit(sizes, found[f"{prefix}peak_bytes"]) for prefix in ("naive_", "")}
    return {
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "base": vars(BASE),
        "sizes": sizes,
        **found,
        "slopes": {
            key: slope(sizes, found[key]) for key in ("naive_step_ms", "step_ms", "naive_peak_bytes", "peak_bytes")
        },
        "votes_made": any(map(ge, found["largest_piece_bytes"][-SLOPED:], found["votes_bytes"][-SLOPED:])),
        "naive_largest_in_24_gb": fits["naive_"][0],
        "largest_in_24_gb": fits[""][0],
        "naive_fit_error": fits["naive_"][1],
        "fit_error": fits[""][1],
    }


def stepping(pair: Pair, forward: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """Forward and backward, to gradients that were not there before."""

    def step() -> None:
        pair.poses.grad = None
        pair.layer.zero_grad()
        forward().sum().backward()

    return step


def slope(sizes: tuple[int, ...], values: list[float]) -> float:
    logarithms = ([math.log(value) for value in each[-SLOPED:]] for each in (sizes, values))
    return round(linear_regression(*logarithms).slope, 3)


def fit(sizes: tuple[int, ...], peaks: list[int]) -> tuple[int | None, float]:
    """The largest size whose peak, on a line through the last ones, stays in `MEMORY`, and how far these lie from it.

    None where the peak does not grow.
    """
    x, y = sizes[-FITTED:], peaks[-FITTED:]
    line = linear_regression(x, y)
    error = max(abs(line.slope * a + line.intercept - b) / b for a, b in zip(x, y, strict=True))
    largest = int((MEMORY - line.intercept) / line.slope) if line.slope > 1e-3 * y[-1] / x[-1] else None
    return largest, round(error, 4)


def summary(name: str, values: dict) -> str:
    slopes = values["slopes"]
    return (
        f"{name:58} slopes of time {slopes['naive_step_ms']:.2f} by einsum, {slopes['step_ms']:.2f} ours; of memory "
        f"{slopes['naive_peak_bytes']:.2f}, {slopes['peak_bytes']:.2f}; in 24 GB {values['naive_largest_in_24_gb']}, "
        f"{values['largest_in_24_gb']}{'; VOTES ARE MADE' if values['votes_made'] else ''}"
    )


if __name__ == "__main__":
    main()
