"""Train one cell of a paper's table without the command line's packages: `python benchmarks/cell.py PAPER/TABLE/CELL`.

What was cut goes on from its last checkpoint, in the folder of the run; a finished run adds its line to
results/runs.jsonl. Data sets are looked for where `$TORCHCAPS_DATA` says.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torchcaps.papers import find_cell
from torchcaps.tables.budget_names import BUDGETS
from torchcaps.tables.fill import Settings, run_all
from torchcaps.tables.plan import plan

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cell", metavar="PAPER/TABLE/CELL")
    parser.add_argument("--budget", choices=BUDGETS, default="fast")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=ROOT / "runs")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    flags = parser.parse_args()
    jobs = plan([find_cell(flags.cell)], flags.budget, flags.seeds)
    run_all(jobs, Settings(flags.results / "runs.jsonl", flags.out, flags.device)).check()


if __name__ == "__main__":
    main()
