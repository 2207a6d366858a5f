"""The six networks of Li et al. 2018, Table 1, narrowed as for the evidence: a training step at one batch size.

The table's own columns mix batches of 4, 8 and 128. Here all take turns on the same batch of CIFAR-10's size, in the
precision that the library chooses. Memory is what torch allocates in a step at most, beside weights and optimiser.
"""

from __future__ import annotations

import argparse
from statistics import median

import torch
from report import allocated_bytes, interleaved, median_ratio, record

from torchcaps.papers import find_cell
from torchcaps.papers.encapnet_six import SIX
from torchcaps.tables.budgets import apply_budget, width
from torchcaps.tables.cells import Train
from torchcaps.tables.measure import count_parameters
from torchcaps.tables.network import training_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    flags = parser.parse_args()
    configs, widths = {}, {}
    for row in SIX:
        cell = find_cell(f"encapnet/table1/{row.name}-cifar10")
        assert isinstance(cell.how, Train)
        configs[row.name], widths[row.name] = apply_budget(cell.how.build(), "cpu", cell), width(cell, "cpu")
    steps = [training_step(config, flags.batch, "cpu")[0] for config in configs.values()]
    seconds = interleaved(steps, flags.repeats)
    for (name, config), step, times in zip(configs.items(), steps, seconds, strict=True):
        values = {
            "threads": torch.get_num_threads(),
            "batch": flags.batch,
            "repeats": flags.repeats,
            "width": widths[name],
            "parameters": round(1e6 * count_parameters(config)),
            "step_ms": round(1000 * median(times), 1),
            "of_dynamic": round(1 / median_ratio(seconds[0], times), 3),
            "peak_mb": round(allocated_bytes(step).peak / 1e6, 1),
        }
        record(f"six-layers/{name}", values)


if __name__ == "__main__":
    main()
