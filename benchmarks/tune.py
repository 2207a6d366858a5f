"""Short runs on validation images, by which the budget `fast` takes its batch, rate and regularisation.

`python benchmarks/tune.py CELL --epochs 6 optimiser.lr=0.1 optimiser.lr=0.2,batch_size=256 ...` trains the recipe of
PAPER/TABLE/CELL as `fast` would, once for each further argument with its changes, on nine tenths of the training split,
and measures the last epoch on the tenth that is held out. No test image is looked at. A line for each goes to
results/tuning.jsonl; a trial that is there is not run again, and one that was cut goes on.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchcaps.config import Config, to_plain
from torchcaps.papers import find_cell
from torchcaps.revisions import revisions_of
from torchcaps.tables.budgets import apply_budget
from torchcaps.tables.cells import Train
from torchcaps.tables.lines import read_lines
from torchcaps.tables.records import append_record, config_hash
from torchcaps.tables.tuned import change
from torchcaps.train.devices import settled
from torchcaps.train.interrupt import Interruption
from torchcaps.train.loop import Trainer
from torchcaps.train.machine import describe_environment
from torchcaps.train.processes import build_fabric
from torchcaps.train.resuming import find_unfinished
from torchcaps.train.run import RunFolder

FILE = Path("results") / "tuning.jsonl"
HELD = 0.1


class Trial(Trainer):
    """A run that ends with its last epoch's validation."""

    def _test(self) -> Any:
        self.folder.write("trial.json", self.position.history[-1])
        return None


def run(config: Config, cell: str, changes: str, results: Path) -> None:
    """One trial, unless its line is there."""
    name = config_hash(config)
    if any((each["config_hash"], each["seed"]) == (name, config.seed) for each in read_lines(results)):
        return
    config = replace(config, recipe=f"trial-{name}")
    try:
        find_unfinished(config)
        resume = True
    except ValueError:
        resume = False
    fabric = build_fabric(config)
    trial = Trial(fabric, config, resume, Interruption(shared=False))
    with settled(fabric.device):
        trial.run()
    last = RunFolder(trial.folder.path).read("trial.json")
    kept = ("validation_accuracy", "validation_loss", "train_accuracy", "train_loss", "images_per_second")
    curve = [each["validation_accuracy"] for each in trial.position.history]
    line = {
        "cell": cell,
        "changes": changes,
        "seed": config.seed,
        "epochs": config.epochs,
        **{key: last[key] for key in kept},
        "curve": curve,
        "seconds": trial.position.seconds,
        "config_hash": name,
        "revisions": revisions_of(config),
        "config": to_plain(replace(config, out=Path("runs"), data=replace(config.data, root=None))),
        "environment": describe_environment(fabric) | {"compiled": trial.learner.compiled},
    }
    append_record(results, line)
    print(
        f"{cell} {changes or 'as it is'}: {last['validation_accuracy']:.2%} in {trial.position.seconds:.0f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell")
    parser.add_argument("changes", nargs="*", default=[""])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--results", type=Path, default=FILE)
    given = parser.parse_intermixed_args()
    cell = find_cell(given.cell)
    assert isinstance(cell.how, Train), f"{cell.id} is not trained"
    fast = apply_budget(cell.how.build(), "fast", cell)
    fast = replace(fast, epochs=given.epochs, seed=given.seed, out=given.out, data=replace(fast.data, validation=HELD))
    for changes in given.changes:
        run(change(fast, changes), cell.id, changes, given.results)


if __name__ == "__main__":
    main()
