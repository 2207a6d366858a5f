"""Append finished runs of `torchcaps train` to results/runs.jsonl, one line a run, and print each recipe's mean and
deviation over its seeds. Runs of `torchcaps reproduce` are there already.

python benchmarks/collect.py RUN [RUN ...]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from report import RESULTS

from torchcaps.tables.records import append_record, describe_run, read_records


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    path = RESULTS / "runs.jsonl"
    for new in map(describe_run, parser.parse_args(arguments).runs):
        if new not in read_records(path):
            append_record(path, new)
    by_recipe: dict[str, list[float]] = defaultdict(list)
    for record in read_records(path):
        if "test_accuracy" in record:
            by_recipe[record["recipe"]].append(100 * record["test_accuracy"])
    for recipe, accuracies in by_recipe.items():
        deviation = f" +- {stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
        print(f"{recipe}: {mean(accuracies):.2f}{deviation} % test accuracy ({len(accuracies)} runs)")


if __name__ == "__main__":
    main()
