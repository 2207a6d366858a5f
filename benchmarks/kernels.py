"""The fused steps beside the algorithms written with einsum: the table of goals, with a pass mark and the roofline.

Each row checks first that both give the same parents and gradients; a row that does not is no result. The roofline of
a pass, see `roofline`, is of the machine as it is measured in this run; operations are counted by formula.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from report import interleaved, median_ratio, record
from roofline import Machine, count_operations, measure_machine
from routing import SIZES, Forward, Pair, Size, build, fitting_batch, held_bytes, mb
from torch import Tensor

from torchcaps.layers import ConvTransform

LINEAR, CONV = SIZES.values()
EM = Size(lambda: ConvTransform(32, 32, 16, 16, stride=2, matrix=True), (14, 14, 32, 16), 8, 36)
TOLERANCE = 1e-3  # largest difference of a result in float32 over the largest number in it


class Row(NamedTuple):
    """One line of the table: what to run, and how many times faster and smaller it must be."""

    routing: str
    size: Size
    iterations: int
    forward: float
    step: float  # forward and backward
    held: float = 20.0


ROWS = {
    "inverted-attention, 16x16x32 of 4x4, 3x3/2 -> 32": Row("inverted-attention", CONV, 3, 20, 12),
    "dynamic, 1152x8 -> 10x16": Row("dynamic", LINEAR, 3, 8, 8),
    "em, 14x14x32 of 4x4, 3x3/2 -> 32": Row("em", EM, 2, 10, 8),
    "fm, 1152x8 -> 10x16": Row("fm", LINEAR, 1, 8, 12),
    "fm, 16x16x32 of 4x4, 3x3/2 -> 32": Row("fm", CONV, 1, 10, 8),
    "xnidr, 16x16x32 of 4x4, 3x3/2 -> 32": Row("xnidr", CONV, 3, 10, 8),
    "xnodr-xnidr, 16x16x32 of 4x4, 3x3/2 -> 32": Row("xnodr-xnidr", CONV, 3, 10, 8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    routings = sorted({row.routing for row in ROWS.values()})
    parser.add_argument("--row", choices=routings, nargs="+", help="by routing; else all")
    parser.add_argument("--batch", type=int, help="largest batch; each row has its own where it is not given")
    flags = parser.parse_args()
    device = torch.device(flags.device)
    machine = measure_machine(device)
    lines = []
    for name, row in ROWS.items():
        if not flags.row or row.routing in flags.row:
            values = measure(row, flags.batch or row.size.batch, flags.repeats, device, machine)
            record(f"kernels/{name}", values)
            lines.append(summary(name, values))
    print(f"{'':52}{'forward':>10}{'goal':>7}{'step':>10}{'goal':>7}{'held':>9}{'goal':>7}  roofline")
    print("\n".join(lines))


def measure(row: Row, wanted: int, repeats: int, device: torch.device, machine: Machine) -> dict:
    """Times, memory and roofline of one row, in which both forms were found equal."""
    batch = fitting_batch(row.size, row.routing, wanted, device, row.iterations)
    pair = build(row.size, row.routing, batch, device, row.iterations, "auto")
    difference = largest_difference(pair)
    forwards = interleaved([pair.plain, pair.ours], repeats)
    upstream = torch.randn_like(pair.ours())
    steps = interleaved([stepping(pair.plain, upstream), stepping(pair.ours, upstream)], repeats)
    held = [held_bytes(forward) for forward in (pair.plain, pair.ours)]
    bounds = roofline(row, pair, batch, upstream, machine)
    found = {
        "forward": median_ratio(*forwards),
        "step": median_ratio(*steps),
        "held": held[0] / held[1],
    }
    return {
        "device": device.type,
        "threads": torch.get_num_threads(),
        "batch": batch,
        "batch_wanted": wanted,
        "iterations": row.iterations,
        "repeats": repeats,
        "fused": pair.layer.form(device.type) == "fused",
        "largest_difference": difference,
        "naive_forward_ms": milliseconds(forwards[0]),
        "forward_ms": milliseconds(forwards[1]),
        "naive_step_ms": milliseconds(steps[0]),
        "step_ms": milliseconds(steps[1]),
        "naive_held_mb": mb(held[0]),
        "held_mb": mb(held[1]),
        "ratios": {key: round(value, 1) for key, value in found.items()},
        "goals": {key: getattr(row, key) for key in found},
        "passed": {key: value >= getattr(row, key) and difference <= TOLERANCE for key, value in found.items()},
        "gflops_per_second": round(machine.operations / 1e9, 1),
        "gb_per_second": round(machine.bytes / 1e9, 1),
        "forward_of_roofline": round(bounds[0] / median(forwards[1]), 3),
        "step_of_roofline": round(bounds[1] / median(steps[1]), 3),
    }


def summary(name: str, values: dict) -> str:
    """One line of the printed table: ratios with their goals, and the share of the roofline, forward and step."""
    cells = [
        f"{values['ratios'][key]:9.1f}x{values['goals'][key]:5.0f} {'ok' if values['passed'][key] else '--'}"
        for key in ("forward", "step", "held")
    ]
    shares = f"{values['forward_of_roofline']:.0%}, {values['step_of_roofline']:.0%}"
    return f"{name:52}{''.join(cells)}  {shares}{'' if values['fused'] else '  (plain steps)'}"


def largest_difference(pair: Pair) -> float:
    """Of parents and gradients, ours against the naive ones, over the largest number of each."""
    leaves = [pair.poses, pair.layer.transform.weight]
    naive, ours = pair.plain(), pair.ours()
    upstream = torch.randn_like(ours)
    both = [(out.flatten(), *torch.autograd.grad(out, leaves, upstream.view(out.shape))) for out in (naive, ours)]
    return max(((a - b).abs().max() / b.abs().max()).item() for b, a in zip(*both, strict=True))


def stepping(forward: Forward, upstream: Tensor) -> Callable[[], None]:
    def step() -> None:
        out = forward()
        out.backward(upstream.view(out.shape))

    return step


def roofline(row: Row, pair: Pair, batch: int, upstream: Tensor, machine: Machine) -> list[float]:
    """Seconds below which neither the forward pass nor forward and backward can come."""
    moved = sum(x.nbytes for x in (pair.poses, pair.layer.transform.weight, upstream))
    counts = count_operations(row.routing, pair.layer.transform, row.size.positions, batch, row.iterations)
    return [machine.seconds(times * moved, count) for times, count in zip((1, 3), counts, strict=True)]


def milliseconds(seconds: list[float]) -> float:
    return round(1000 * median(seconds), 2)


if __name__ == "__main__":
    main()
