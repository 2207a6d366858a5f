"""A folded discriminative layer, at inference, beside three iterations of dynamic routing: time and memory.

1152 capsules of 8 to 10 of 16. Dynamic routing is timed in the form of public code, by einsum over votes, and as the
library's own layer. Peak is what a forward pass allocates at most at one time, beside weights and children.

A time is that of one of several passes in a row. With a single pass the forms take turns, and each finds its weights,
5.6 MiB, outside the cache, which for one image costs more than the product itself.
"""

from __future__ import annotations

import argparse
import gc
import weakref
from collections.abc import Callable
from statistics import median
from typing import Any

import naive
import torch
from report import interleaved, median_ratio, record
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchcaps.capsules import Capsules, squash
from torchcaps.layers import CapsuleLayer, CapsuleStack, LinearTransform

CHILDREN, PARENTS, POSE, CLASS_POSE = 1152, 10, 8, 16
ITERATIONS = 3  # of dynamic routing
TURNS = ((128, 1, 15), (1, 1, 200), (1, 20, 30))  # batch, passes in a row, repeats


class PeakMemory(TorchDispatchMode):
    """Bytes of the tensors made inside: those that are alive, and the most that ever were at one time."""

    def __init__(self, *known: Tensor):
        super().__init__()
        self.live = self.peak = 0
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if address in self.known:
            return
        self.known.add(address)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.live -= size


def peak_mb(forward: Callable[[], object], *known: Tensor) -> float:
    """Most that `forward` has allocated at one time, in MiB; `known` are there before."""
    gc.collect()
    with PeakMemory(*known) as memory:
        forward()
    return round(memory.peak / 2**20, 3)


def compare(batch: int, passes: int, repeats: int, device: torch.device) -> None:
    """Record one line: all forms on the same children."""
    torch.manual_seed(0)
    layer = CapsuleLayer(LinearTransform(CHILDREN, PARENTS, POSE, CLASS_POSE, std=0.1), "discriminative").to(device)
    dynamic = CapsuleStack([CapsuleLayer(layer.transform, "dynamic")], ITERATIONS)
    plain, folded = CapsuleStack([layer]), CapsuleStack([layer.fold()])
    poses = squash(torch.randn(batch, CHILDREN, POSE, device=device))
    weight = layer.transform.weight
    forms: dict[str, Callable[[], object]] = {
        "einsum_dynamic": lambda: naive.dynamic(naive.linear_votes(poses, weight), ITERATIONS),
        "dynamic": lambda: dynamic(Capsules(poses)),
        "discriminative": lambda: plain(Capsules(poses)),
        "folded": lambda: folded(Capsules(poses)),
    }
    known = [poses, *plain.parameters(), *folded.parameters()]
    with torch.no_grad():
        (step,), (wanted,) = folded(Capsules(poses)), plain(Capsules(poses))
        torch.testing.assert_close(step.capsules.poses, wanted.capsules.poses, rtol=1e-4, atol=1e-5)
        turns = interleaved(list(forms.values()), repeats, warmup=3, calls=passes)
        peaks = {name: peak_mb(form, *known) for name, form in forms.items()}
    seconds = dict(zip(forms, turns, strict=True))
    record(
        f"fold/linear {CHILDREN}x{POSE} -> {PARENTS}x{CLASS_POSE}",
        {
            "device": device.type,
            "threads": torch.get_num_threads(),
            "batch": batch,
            "iterations": ITERATIONS,
            "passes": passes,
            "repeats": repeats,
            **{f"{name}_ms": round(1000 * median(times), 3) for name, times in seconds.items()},
            **{f"{name}_peak_mb": peak for name, peak in peaks.items()},
            "speed_up": round(median_ratio(seconds["einsum_dynamic"], seconds["folded"]), 1),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    flags = parser.parse_args()
    for batch, passes, repeats in TURNS:
        compare(batch, passes, repeats, torch.device(flags.device))


if __name__ == "__main__":
    main()
