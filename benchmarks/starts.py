"""Where the coefficients of routing towards discriminative quality may start, and by which step they may ascend.

Five epochs of 10,000 images with the narrowed network of the paper's recipes, without a decoder: coefficients that stay
where they start, and such that ascend by a step, which is given as a share of the start's square. Each run is a line of
results/starts.jsonl with its accuracy on 10,000 validation images; nothing is tested, and a run that has its line is
not repeated. `docs/discriminative_blocks.py` makes a table of the lines.

python benchmarks/starts.py
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from report import RESULTS

from torchcaps.config import CoefficientConfig, Config, Option
from torchcaps.papers.discriminative import Data, narrow, system
from torchcaps.revisions import revisions_of
from torchcaps.routing.discriminative import Discriminative
from torchcaps.tables.records import append_record, config_hash, read_records
from torchcaps.train.display import Display
from torchcaps.train.loop import Trainer
from torchcaps.train.machine import describe_machine
from torchcaps.train.processes import build_fabric

PATH = RESULTS / "starts.jsonl"
IMAGES, EPOCHS = 20_000, 5  # of the training split, half of which is held out
SHARES = (0.004, 0.4, 4.0)
BALANCED = 1 / 9  # weight of absent classes by which they count no more than the one that is there


class Trial(NamedTuple):
    """One run: a start, and a step as a share of its square; None leaves the coefficients there."""

    data: Data
    start: float
    share: float | None = None
    absent: float = 1.0
    penalty: float = 0.001


def trials() -> Iterator[Trial]:
    for start in (0.1, 0.3, 1.0, 3.0, 10.0):
        yield Trial("fashion-mnist", start)
        yield from (Trial("fashion-mnist", start, share) for share in SHARES)
        yield Trial("fashion-mnist", start, SHARES[-1], BALANCED)
    yield from (Trial("fashion-mnist", 1.0, 0.4, penalty=penalty) for penalty in (0.0, 0.1))
    yield from (Trial("cifar10", start) for start in (0.1, 0.3, 0.54))


def build(trial: Trial, seed: int) -> Config:
    """The recipe of the paper's network without a decoder, narrowed as the budget `cpu` narrows it."""
    config = system(trial.data, "control" if trial.share is None else "l2", decoder=False)
    options: dict[str, Option] = config.model.options | dict(narrow(trial.data, "l2").options)
    options["initial"] = trial.start
    if trial.share is not None:
        options |= {"absent_weight": trial.absent, "penalty_weight": trial.penalty}
    return replace(
        config,
        recipe="start",
        model=replace(config.model, options=options),
        data=replace(config.data, limit=IMAGES, validation=0.5),
        coefficients=CoefficientConfig(lr=(trial.share or 1.0) * trial.start**2),
        epochs=EPOCHS,
        seed=seed,
    )


def train(config: Config) -> dict[str, object]:
    """Accuracy on the validation images after the last epoch, and the classes whose coefficients have vanished."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(build_fabric(config), replace(config, out=Path(folder)), resume=False)
        try:
            with Display(config.epochs, len(trainer.batches), enabled=False) as display:
                for _ in range(config.epochs):
                    trainer.train_epoch(display)
                    trainer.end_epoch(display)
        except FloatingPointError as error:
            return {"failure": " ".join(str(error).split())}
    routing = next(each for each in trainer.model.modules() if isinstance(each, Discriminative))
    coefficient = routing.coefficient.detach()
    return {
        "validation_accuracy": trainer.position.history[-1]["validation_accuracy"],
        "collapsed": routing.collapsed(),
        "coefficients": {"mean": coefficient.mean().item(), "std": coefficient.std().item()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    flags = parser.parse_args()
    for seed in range(flags.seeds):
        for trial in trials():
            config = build(trial, seed)
            line = {**trial._asdict(), "seed": seed, "config_hash": config_hash(config)}
            if any(line.items() <= each.items() for each in read_records(PATH)):
                continue
            found = {"revisions": revisions_of(config), **train(config), "environment": describe_machine()}
            append_record(PATH, line | found)
            print(trial, found.get("validation_accuracy", found.get("failure")), found.get("collapsed"), flush=True)


if __name__ == "__main__":
    main()
