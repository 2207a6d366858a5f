"""The forms of a layer beside each other: the plain steps, the kernel, and einsum; forward and backward.

To its lines on a CPU, `forms/...` in results/benchmarks.jsonl, the rule of `kernels/rule.py` is fitted, from the
smallest sizes that a layer may have upwards. `gpu_all.py` takes the same measure on a GPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Literal, NamedTuple

import torch
from naive_layer import route_naively

from torchcaps.capsules import Capsules
from torchcaps.kernels import timing
from torchcaps.kernels.probe import name_error
from torchcaps.layers import CapsuleLayer, ConvTransform, LinearTransform, Transform

Way = Literal["plain", "fused", "einsum", "compiled", "fused-compiled"]  # compiled: of plain steps


class Shape(NamedTuple):
    """A layer's sizes: what makes its transform, and the children of one image."""

    transform: Callable[[], Transform]
    children: tuple[int, ...]


def linear(children: int, pose: int, parents: int, vote: int, matrix: bool = False) -> Shape:
    return Shape(lambda: LinearTransform(children, parents, pose, vote, matrix=matrix), (children, pose))


def conv(side: int, children: int, parents: int) -> Shape:
    """Windows of 3 x 3, every other one, of 4 x 4 poses."""
    transform = lambda: ConvTransform(children, parents, 16, 16, stride=2, matrix=True)  # noqa: E731
    return Shape(transform, (side, side, children, 16))


LINEAR = {
    "4x2 -> 2x4": linear(4, 2, 2, 4),
    "16x4 -> 4x8": linear(16, 4, 4, 8),
    "64x8 -> 10x16": linear(64, 8, 10, 16),
    "256x8 -> 10x16": linear(256, 8, 10, 16),
}
CONV = {"3x3x2 -> 2 of 4x4": conv(3, 2, 2), "5x5x4 -> 4 of 4x4": conv(5, 4, 4)}
ROUTINGS = (
    "dynamic",
    "xnodr",
    "em",
    "inverted-attention",
    "inverted-attention-c",
    "xnidr",
    "xnodr-xnidr",
    "fm",
    "variational-bayes",
)
BATCHES = (1, 32)
TURNS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--routing", choices=ROUTINGS, nargs="+", default=ROUTINGS)
    parser.add_argument("--shape", choices=[*LINEAR, *CONV], nargs="+", default=[*LINEAR, *CONV])
    parser.add_argument("--batch", type=int, nargs="+", default=BATCHES)
    flags = parser.parse_args()
    from report import record  # which asks for what a run needs

    torch.set_num_threads(1)
    for routing in flags.routing:
        for name, shape in (LINEAR | CONV).items():
            taken = name in flags.shape and CapsuleLayer(shape.transform(), routing).fused
            for batch in flags.batch if taken else ():
                found = measure(routing, shape, batch, torch.device("cpu"), ("plain", "fused"), turns=flags.turns)
                if faults := [value for key, value in found.items() if key.endswith("_fault")]:
                    raise RuntimeError(f"{routing}, {name}: {faults[0]}")
                record(f"forms/{routing}/{name}", {"device": "cpu", "threads": 1, "batch": batch} | found)


def measure(
    routing: str,
    shape: Shape,
    batch: int,
    device: torch.device,
    ways: tuple[Way, ...],
    iterations: int = 2,
    turns: int = TURNS,
) -> dict[str, float | int | str | None]:
    """Milliseconds of forward and backward of each way, in turn, the median; None where memory does not suffice.

    On a GPU the most that a turn allocates, in MiB, too. Of a way that fails there is the reason, WAY_fault.
    """
    steps: dict[str, Callable[[], None]] = {}
    faults: dict[str, str] = {}
    for way in ways:
        try:
            steps[way] = stepping(way, routing, shape, batch, device, iterations)
        except Exception as error:  # the others are to be measured
            faults[f"{way}_fault"] = name_error(error)
    taken: dict[str, list[float]] = {way: [] for way in ways}
    peaks: dict[str, float] = {}
    for turn in range(turns + 1):
        for way in [way for way in ways if way in steps]:
            try:
                seconds = clock(steps[way], device)
            except Exception as error:  # such as of a kernel that its trial refuses
                if not isinstance(error, torch.OutOfMemoryError):
                    faults[f"{way}_fault"] = name_error(error)
                del steps[way]
                taken[way] = []
                continue
            if turn:
                taken[way].append(seconds)
            elif device.type == "cuda":
                peaks[way] = peak_mb(steps[way], device)
    found: dict[str, float | int | str | None] = {"iterations": iterations, "turns": turns}
    found |= {f"{way}_ms": round(1000 * median(each), 4) if each else None for way, each in taken.items()}
    return found | {f"{way}_peak_mb": value for way, value in peaks.items()} | faults


def clock(step: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call; on a CPU of the processor's time, the mean of as many calls as last some milliseconds."""
    if device.type == "cuda":
        return timing.clock(step, device)
    start, calls = time.process_time(), 0
    while not calls or time.process_time() - start < 0.005:
        step()
        calls += 1
    return (time.process_time() - start) / calls


def peak_mb(step: Callable[[], object], device: torch.device) -> float:
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return round((torch.cuda.max_memory_allocated(device) - before) / 2**20, 1)


def stepping(
    way: Way, routing: str, shape: Shape, batch: int, device: torch.device, iterations: int
) -> Callable[[], None]:
    """Forward and backward of a layer whose weights and children are the same in every way."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layer = CapsuleLayer(shape.transform(), routing, "fused" if way.startswith("fused") else "plain").to(device)
    poses = torch.randn(batch, *shape.children, generator=generator).to(device).requires_grad_()
    activations = torch.rand(batch, *shape.children[:-1], generator=generator).to(device)

    def routed() -> torch.Tensor:
        if way == "einsum":
            return route_naively(layer, poses, activations, iterations)
        return layer(Capsules(poses, activations), iterations).capsules.poses

    forward = torch.compile(routed, dynamic=False) if way.endswith("compiled") else routed
    leaves = [poses, *(p for p in layer.parameters() if p.requires_grad)]

    def step() -> None:
        torch.autograd.grad(forward().sum(), leaves, allow_unused=True)

    return step


if __name__ == "__main__":
    main()
