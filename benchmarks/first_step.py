"""What a user waits for before the first step of a layer is done: kernels are compiled once per machine, then kept.

Seconds of the first forward and backward pass in a process, with the import of numba: with empty caches, in the next
process, and with plain steps. Each is the median over processes of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from report import record
from torch import Tensor

from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, LinearTransform
from torchcaps.routing.fused import Implementation


def linear() -> LinearTransform:
    return LinearTransform(1152, 10, 8, 16)


def convolutional() -> ConvTransform:
    return ConvTransform(32, 32, 16, 16, kernel=3, stride=2)


LAYERS = {  # as in kernels.py: transform, children, images
    "dynamic": (linear, (1152, 8), 128),
    "fm": (linear, (1152, 8), 128),
    "em": (lambda: ConvTransform(32, 32, 16, 16, kernel=3, stride=2, matrix=True), (14, 14, 32, 16), 8),
    "inverted-attention": (convolutional, (16, 16, 32, 16), 8),
    "inverted-attention-c": (convolutional, (16, 16, 32, 16), 8),
    "self-attention": (linear, (1152, 8), 128),
    "xnodr": (linear, (1152, 8), 128),
    "xnidr": (linear, (1152, 8), 128),
    "xnodr-xnidr": (linear, (1152, 8), 128),
    "variational-bayes": (linear, (1152, 8), 128),
}


def first_step(routing: str, implementation: Implementation) -> tuple[float, Tensor]:
    """Seconds of one step, and a number by which forms are compared."""
    transform, children, images = LAYERS[routing]
    torch.manual_seed(0)
    layer = CapsuleLayer(transform(), routing, implementation=implementation)
    stack = CapsuleStack([layer])
    poses = torch.randn(images, *children, requires_grad=True)
    activations = torch.rand(images, *children[:-1]) if layer.routing.spec.needs_activations else None
    begun = time.perf_counter()
    result = stack(Capsules(poses, activations))[-1].capsules.poses.square().mean()
    result.backward()
    seconds = time.perf_counter() - begun
    assert poses.grad is not None
    return seconds, result.detach() + poses.grad.norm()


def in_a_process(routing: str, implementation: str, cache: str, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", routing, implementation, "--threads", str(threads)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"NUMBA_CACHE_DIR": cache}
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--routing", choices=LAYERS, nargs="+", default=list(LAYERS))
    parser.add_argument("--one", nargs=2, metavar=("ROUTING", "IMPLEMENTATION"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    if flags.one:
        seconds, result = first_step(*flags.one)
        print(json.dumps({"seconds": seconds, "result": result.item()}))
        return
    for routing in flags.routing:
        found: dict[str, list[dict[str, float]]] = {"first": [], "again": [], "plain": []}
        for _ in range(flags.repeats):
            with tempfile.TemporaryDirectory() as folder:
                for name in found:
                    form = "plain" if name == "plain" else "fused"
                    found[name].append(in_a_process(routing, form, str(Path(folder)), flags.threads))
        values = {name: [each["result"] for each in runs] for name, runs in found.items()}
        difference = max(abs(x / values["plain"][0] - 1) for x in values["first"] + values["again"])
        assert difference < 1e-4, f"{routing}: the forms differ by {difference}"
        seconds = {
            f"{name}_seconds": round(median(each["seconds"] for each in runs), 3) for name, runs in found.items()
        }
        record(
            f"first-step/{routing}",
            {"threads": flags.threads, "repeats": flags.repeats, **seconds, "difference": difference},
        )


if __name__ == "__main__":
    main()
