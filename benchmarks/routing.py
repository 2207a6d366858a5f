"""Time, memory and roofline of every routing beside its naive form, linear and convolutional, forward and backward.

Layers take the steps that they take for a user: fused ones where there is a kernel, else plain ones. Held is what
autograd keeps for backward: all distinct storages together, the weights' too. Where the naive form does not fit into
the memory that is free, the batch is halved until it does, and the line says so. Timed beside is the naive form under
`torch.compile`, whole and for fixed shapes; compiling takes its time, and `--without-compiled` leaves it out.

`--public DIR` measures public code in that folder beside linear layers, and nothing else; `public.py` says how a file
there looks.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import public
import torch
from naive_layer import route_naively
from public import Rival
from report import interleaved, median_ratio, record, step
from roofline import Machine, count_operations, measure_machine
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, ConvTransform, LinearTransform
from torchcaps.routing.fused import Implementation
from torchcaps.terminal import warn

Forward = Callable[[], Tensor]
ITERATIONS = {
    "dynamic": 3,
    "em": 3,
    "inverted-attention": 2,
    "inverted-attention-c": 2,
    "fm": 1,
    "xnodr": 3,
    "xnidr": 3,
    "xnodr-xnidr": 3,
    "discriminative": 1,
    "uniform": 1,
    "self-attention": 1,
    "self-routing": 1,
    "variational-bayes": 3,
}
WINDOW = ("em", "variational-bayes")  # whose children compete at each position, as the naive forms have it


class Pair(NamedTuple):
    """The same layer twice, to parents' poses, and what they share."""

    ours: Forward
    plain: Forward
    layer: CapsuleLayer
    poses: Tensor  # of the children


class Size(NamedTuple):
    transform: Callable[[], LinearTransform | ConvTransform]
    children: tuple[int, ...]  # poses of one image
    batch: int
    positions: int


SIZES = {
    "linear 1152x8 -> 10x16": Size(lambda: LinearTransform(1152, 10, 8, 16), (1152, 8), 128, 1),
    "conv 16x16x32 of 4x4, 3x3/2 -> 32 of 4x4": Size(
        lambda: ConvTransform(32, 32, 16, 16, stride=2, matrix=True), (16, 16, 32, 16), 32, 49
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--routing", choices=ITERATIONS, nargs="+", default=list(ITERATIONS))
    parser.add_argument("--size", choices=[name.split()[0] for name in SIZES], nargs="+", help="else all")
    parser.add_argument("--batch", type=int, help="largest batch; each size has its own where it is not given")
    parser.add_argument("--without-compiled", action="store_true", help="leave out einsum under torch.compile")
    parser.add_argument("--public", type=Path, metavar="DIR", help="measure the files of this folder instead")
    flags = parser.parse_args()
    device = torch.device(flags.device)
    if flags.public is not None:
        compare_public(public.read_rivals(flags.public, ITERATIONS), flags.batch, flags.repeats, device)
        return
    machine, lines = measure_machine(device), [HEADING]
    for name, size in SIZES.items():
        if flags.size and name.split()[0] not in flags.size:
            continue
        for routing in flags.routing:
            wanted = min(size.batch, flags.batch or size.batch)
            values = compare(size, routing, wanted, flags.repeats, device, machine, not flags.without_compiled)
            record(f"routing/{routing}/{name}", values)
            lines.append(summary(f"{routing}, {name}", values))
    print("\n".join(lines))


def compare(
    size: Size,
    routing: str,
    wanted: int,
    repeats: int,
    device: torch.device,
    machine: Machine,
    with_compiled: bool = True,
) -> dict:
    """Of one line: the library's layer and the naive form, also compiled, on the same children and weights."""
    batch, iterations = fitting_batch(size, routing, wanted, device), ITERATIONS[routing]
    ours, plain, layer, poses = build(size, routing, batch, device, implementation="auto")
    held, peaks = [held_bytes(forward) for forward in (plain, ours)], {}
    if device.type == "cuda":
        peaks = {f"{key}peak_mb": peak_mb(f, device) for key, f in (("naive_", plain), ("", ours))}
    compiled = compile_naive(plain, routing) if with_compiled else None
    timed = [plain, ours] if compiled is None else [plain, ours, compiled]
    forwards, steps = interleaved(timed, repeats), interleaved([partial(step, each) for each in timed], repeats)
    moved = poses.nbytes + layer.transform.weight.nbytes + ours().nbytes
    operations = count_operations(routing, layer.transform, size.positions, batch, iterations)
    bounds = machine.seconds(moved, operations[0]), machine.seconds(3 * moved, operations[1])
    return {
        "device": device.type,
        "threads": torch.get_num_threads(),
        "batch": batch,
        "batch_wanted": wanted,
        "iterations": iterations,
        "repeats": repeats,
        "fused": layer.form(device.type) == "fused",
        "votes_mb": mb(4 * batch * size.positions * vote_elements(size)),
        "held_mb": mb(held[1]),
        "naive_held_mb": mb(held[0]),
        **peaks,
        "forward_ms": round(1000 * median(forwards[1]), 2),
        "naive_forward_ms": round(1000 * median(forwards[0]), 2),
        "step_ms": round(1000 * median(steps[1]), 2),
        "naive_step_ms": round(1000 * median(steps[0]), 2),
        "forward_speed_up": round(median_ratio(*forwards[:2]), 2),
        "step_speed_up": round(median_ratio(*steps[:2]), 2),
        **(compiled_values(forwards, steps) if with_compiled else {}),
        "gflops_per_second": round(machine.operations / 1e9, 1),
        "gb_per_second": round(machine.bytes / 1e9, 1),
        "roofline_forward_ms": round(1000 * bounds[0], 3),
        "roofline_step_ms": round(1000 * bounds[1], 3),
        "forward_of_roofline": round(bounds[0] / median(forwards[1]), 3),
        "step_of_roofline": round(bounds[1] / median(steps[1]), 3),
    }


def compare_public(rivals: Sequence[Rival], wanted: int | None, repeats: int, device: torch.device) -> None:
    """Record a line for each file and linear size, `public/FILE/SIZE`, and print their table."""
    lines = [public.HEADING]
    for name, size in SIZES.items():
        if len(size.children) != 2:
            continue
        for rival in rivals:
            rounds, most = rival.iterations, min(size.batch, wanted or size.batch)
            batch = fitting_batch(size, rival.routing, most, device, rounds)
            pair = build(size, rival.routing, batch, device, rounds, "auto", torch.ones)
            weight = pair.layer.transform.weight
            values = public.compare(rival, pair.ours, pair.plain, pair.poses, weight, repeats)
            record(f"public/{rival.file}/{name}", values)
            lines.append(public.summary((rival.file, name), values))
    print("\n".join(lines))


def compile_naive(plain: Forward, name: str) -> Forward | None:
    """The naive form under `torch.compile`, forward and backward compiled; None, with a warning, where that fails."""
    torch.compiler.reset()  # else the ninth form of one function would run as it is
    compiled = torch.compile(plain, dynamic=False)
    try:
        step(compiled)
    except Exception as error:  # whatever a compiler comes upon: a rival that cannot run is no end of the others
        warn(f"{name}: einsum does not compile: {type(error).__name__}: {error}")
        return None
    return compiled


def compiled_values(forwards: list[list[float]], steps: list[list[float]]) -> dict[str, float | None]:
    """Times of the compiled form, the third where there is one, and how many times ours they take; else None."""
    values: dict[str, float | None] = {}
    for key, times in (("forward", forwards), ("step", steps)):
        _, ours, *compiled = times
        values[f"compiled_{key}_ms"] = round(1000 * median(compiled[0]), 2) if compiled else None
        values[f"compiled_{key}_speed_up"] = round(median_ratio(compiled[0], ours), 2) if compiled else None
    return values


HEADING = (
    f"{'':58}{'forward':>10}{'einsum':>9}{'compiled':>9}{'step':>9}{'einsum':>9}{'compiled':>9}"
    f"{'held':>8}{'einsum':>8}  roofline"
)


def summary(name: str, values: dict) -> str:
    """One line of the printed table: milliseconds, MiB held, and the share of the roofline, forward and step."""
    keys = [f"{form}{key}_ms" for key in ("forward", "step") for form in ("", "naive_", "compiled_")]
    times = " " + "".join(f"{'-':>9}" if values.get(key) is None else f"{values[key]:9.1f}" for key in keys)
    shares = f"{values['forward_of_roofline']:.0%}, {values['step_of_roofline']:.0%}"
    held = f"{values['held_mb']:8.1f}{values['naive_held_mb']:8.1f}"
    return f"{name:58}{times}{held}  {shares}{'' if values['fused'] else '  (plain steps)'}"


def build(
    size: Size,
    routing: str,
    batch: int,
    device: torch.device,
    iterations: int | None = None,
    implementation: Implementation = "plain",
    make_activations: Callable[..., Tensor] = torch.rand,
) -> Pair:
    """The library's forward pass and the naive one, on random children and fresh weights."""
    torch.manual_seed(0)
    options = {"scope": "window"} if routing in WINDOW else {}
    layer = CapsuleLayer(size.transform(), routing, implementation, **options).to(device)
    poses = torch.randn(batch, *size.children, device=device, requires_grad=True)
    activations = make_activations(batch, *size.children[:-1], device=device)
    rounds = iterations or ITERATIONS[routing]
    return Pair(
        lambda: layer(Capsules(poses, activations), rounds).capsules.poses,
        lambda: route_naively(layer, poses, activations, rounds),
        layer,
        poses,
    )


def fitting_batch(size: Size, routing: str, wanted: int, device: torch.device, iterations: int | None = None) -> int:
    """The largest of wanted, wanted / 2, ... whose naive form, backward included, takes up to 3/4 of what is free."""
    one, two = (held_bytes(build(size, routing, batch, device, iterations).plain) for batch in (1, 2))
    votes = 4 * size.positions * vote_elements(size)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    batch = wanted
    while batch > 1 and batch * (two - one + 4 * votes) > 0.75 * free:
        batch //= 2
    return batch


def vote_elements(size: Size) -> int:
    """Elements of one image's votes at one position, i * j * d."""
    children, parents, pose = size.transform().sizes
    return children * parents * pose


def available_memory() -> int:
    """Bytes that are free on this machine."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def held_bytes(forward: Forward) -> int:
    """Bytes of the distinct storages that autograd keeps after `forward`."""
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no other storage gets its address
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = forward()
    assert out.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


def peak_mb(forward: Forward, device: torch.device) -> float:
    """Largest allocation on a CUDA device during forward and backward, less what was there before."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    step(forward)
    return mb(torch.cuda.max_memory_allocated(device) - before)


def mb(size: int) -> float:
    return round(size / 2**20, 1)


if __name__ == "__main__":
    main()
