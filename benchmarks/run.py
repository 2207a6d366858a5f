"""All benchmarks, one after another, each in a process of its own: `make bench`. Run it while nothing else runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = (
    "stem.py",
    "routing.py",
    "kernels.py",
    "networks.py",
    "scale.py",
    "fold.py",
    "xnor.py",
    "feedback.py",
    "data.py",
)


def main() -> None:
    for name in BENCHMARKS:
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).parent / name)], check=True)


if __name__ == "__main__":
    main()
