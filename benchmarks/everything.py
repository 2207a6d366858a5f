"""All benchmarks, one after another, each in a process of its own: `make bench`. Run it while nothing else runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from torchcaps.train.machine import describe_machine

BENCHMARKS = (
    "stem.py",
    "routing.py",
    "kernels.py",
    "first_step.py",
    "networks.py",
    "parts.py",
    "scale.py",
    "fold.py",
    "discriminative.py",
    "xnor.py",
    "heads.py",
    "encapnet.py",
    "feedback.py",
    "six_layers.py",
    "batches.py",
)


def main() -> None:
    print(", ".join(f"{name} {value}" for name, value in describe_machine().items() if not isinstance(value, dict)))
    for name in BENCHMARKS:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).parent / name)], check=True)


if __name__ == "__main__":
    main()
