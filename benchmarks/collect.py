"""Append finished runs to results/runs.jsonl, one line a run, and print each recipe's mean and spread over its seeds.

python benchmarks/collect.py RUN [RUN ...]
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

from report import RESULTS

from torchcaps.train import RunFolder

RUNS = RESULTS / "runs.jsonl"


def line(path: Path) -> dict:
    """Recipe, seed, result, configuration and environment of a finished run."""
    run = RunFolder(path)
    config = run.read("config.json")
    result, environment = run.read("result.json"), run.read("environment.json")
    return {"recipe": config["recipe"], "seed": config["seed"], **result, "config": config, "environment": environment}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    known = [json.loads(text) for text in RUNS.read_text().splitlines()] if RUNS.exists() else []
    fresh = [new for new in map(line, parser.parse_args().runs) if new not in known]
    RESULTS.mkdir(exist_ok=True)
    with RUNS.open("a") as file:
        file.writelines(json.dumps(new) + "\n" for new in fresh)
    by_recipe: dict[str, list[float]] = defaultdict(list)
    for record in known + fresh:
        by_recipe[record["recipe"]].append(100 * record["test_accuracy"])
    for recipe, accuracies in by_recipe.items():
        spread = f" +- {stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
        print(f"{recipe}: {mean(accuracies):.2f}{spread} % test accuracy ({len(accuracies)} runs)")


if __name__ == "__main__":
    main()
