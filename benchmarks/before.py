"""Training steps of each paper's full-size network as another checkout takes them and as this one does, in turns.

`python benchmarks/before.py DIR` with DIR a checkout of another commit (`git worktree add DIR COMMIT`), whose package
must be importable with what is installed here. Each checkout has a process of its own, which builds the network of a
cell's recipe and takes a step when it is asked for one: so neighbouring steps of both pair, on one thread. A run trains
as these steps do, apart from data.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from statistics import median

from report import RESULTS, median_ratio, record

NETWORKS = (
    "inverted-attention/table1/attention-simple-cifar10-r2",
    "inverted-attention/table1/attention-resnet-cifar10-r2",
    "fm/table2/ours-cifar10",
    "encapnet/table1/master-cifar10",
    "encapnet/table1/master-aide-cifar10",
    "discriminative/table2/fashion-mnist-l2",
    "xnodr/table4/mobilenet-xnidr-plain-cifar10",
)
HERE = RESULTS.parent


def steps(cell: str, batch: int) -> None:
    """Take a step for each line that is read, and say its seconds; what a run keeps, this process keeps."""
    import torch

    import torchcaps.memory
    from torchcaps.papers import create_recipe
    from torchcaps.tables.network import training_step

    torch.set_num_threads(1)
    torch.manual_seed(0)
    step, _ = training_step(create_recipe(cell, "fast"), batch, "cpu")
    kept = getattr(torchcaps.memory, "kept", lambda _: nullcontext())  # the other checkout may not have it
    with kept("cpu"):
        for _ in sys.stdin:
            begun = time.perf_counter()
            step()
            print(time.perf_counter() - begun, flush=True)


def started(stack: ExitStack, checkout: Path, cell: str, batch: int) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--steps", cell, "--batch", str(batch), "-"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return stack.enter_context(subprocess.Popen(command, env=environment, **pipes))


def ask(process: subprocess.Popen[str]) -> float:
    assert process.stdin and process.stdout
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def commit(checkout: Path) -> str:
    """Return the hash of what is checked out, with + where files differ from it."""
    run = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--abbrev=7", "--exclude=*"]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()


def compare(cell: str, other: Path, batch: int, repeats: int) -> None:
    with ExitStack() as stack:
        both = [started(stack, each, cell, batch) for each in (other, HERE)]
        for _ in range(2):  # compile, and fill what is kept
            list(map(ask, both))
        before, now = zip(*(tuple(map(ask, both)) for _ in range(repeats)), strict=True)
        for process in both:
            assert process.stdin
            process.stdin.close()
    ratios = sorted(a / b for a, b in zip(before, now, strict=True))
    values = {
        "batch": batch,
        "before_ms": round(1000 * median(before), 1),
        "now_ms": round(1000 * median(now), 1),
        "ratio": round(median_ratio(before, now), 3),
        "ratios": [round(ratios[len(ratios) // 4], 3), round(ratios[-1 - len(ratios) // 4], 3)],
        "repeats": repeats,
        "commits": [commit(other), commit(HERE)],
    }
    record(f"before/{cell}", values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--cells", nargs="+", default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.steps:
        steps(flags.steps, flags.batch)
        return
    if not (flags.checkout / "src" / "torchcaps").is_dir():
        parser.error(f"{flags.checkout} is no checkout of torchcaps: there is no src/torchcaps in it")
    for cell in flags.cells:
        compare(cell, flags.checkout, flags.batch, flags.repeats)


if __name__ == "__main__":
    main()
