"""Figure 4 of Yang, Li and Yu 2021: time of 100 training steps with dynamic routing and with learnt coefficients.

The three-layer network with its decoder on MNIST's size, batches of 128: dynamic routing as public code writes it, by
einsum in float32; then the library's dynamic routing, l2 and l1 coefficients (two phases a step), and coefficients
that stay constant, each in float32 as the paper trains and in the precision that the library chooses. All take turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
from networks import CASES, Bench
from report import interleaved, median_ratio, record

from torchcaps.papers.discriminative import System, system
from torchcaps.tables.network import training_step

BATCH = 128
SYSTEMS: tuple[System, ...] = ("dr", "l2", "l1", "control")
EINSUM = "dr, einsum"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    flags = parser.parse_args()
    steps: dict[str, Callable[[], object]] = {}
    bench = Bench(CASES["capsnet"], BATCH)
    steps[EINSUM] = bench.training(bench.einsum())
    for precision in ("fp32", "auto"):
        for name in SYSTEMS:
            config = replace(system("mnist", name, decoder=True), precision=precision)
            steps[f"{name}, {precision}"] = training_step(config, BATCH, "cpu")[0]
    seconds = dict(zip(steps, interleaved(list(steps.values()), flags.repeats), strict=True))
    shares = {name: 1 / median_ratio(seconds[EINSUM], times) for name, times in seconds.items()}
    record(
        "discriminative/figure 4",
        {
            "threads": torch.get_num_threads(),
            "batch": BATCH,
            "repeats": flags.repeats,
            "difference": bench.difference(),
            "seconds_of_100_steps": {name: round(100 * median(times), 2) for name, times in seconds.items()},
            "share_of_einsum": {name: round(share, 3) for name, share in shares.items()},
        },
    )
    for name, times in seconds.items():
        print(f"{name:16}{100 * median(times):8.1f} s  {shares[name]:6.1%} of einsum")


if __name__ == "__main__":
    main()
