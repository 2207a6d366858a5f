"""Singular values of FM agreement's Jacobian while its network trains, for each ablation of Zhao et al. 2020.

The paper's claim (section 3.2): with 1/n and votes of length one they stay near one. A line of JSON for each epoch,
epoch 0 before the first step, and each layer.

python benchmarks/singular.py --variants paper no-mean --out singular.jsonl
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from torchcaps.config import Config, Option
from torchcaps.inspect import measure_jacobian
from torchcaps.papers import find_cell
from torchcaps.revisions import revisions_of
from torchcaps.tables.budgets import apply_budget
from torchcaps.tables.cells import Train
from torchcaps.tables.lines import append_line
from torchcaps.train.display import Display
from torchcaps.train.loop import Trainer
from torchcaps.train.processes import build_fabric

VARIANTS: dict[str, dict[str, Option]] = {
    "paper": {},
    "no-mean": {"mean": False},
    "no-l2": {"l2": False},
    "no-mean-no-l2": {"mean": False, "l2": False},
    "no-batch-norm": {"batch_norm": "none"},
    "vector": {"matrix": False},
}
IMAGES = 4  # whose Jacobian is taken, of a batch of training


class Watched(Trainer):
    """A run whose Jacobian is measured before its first step and after each epoch."""

    def __init__(self, config: Config, variant: str, out: Path):
        super().__init__(build_fabric(config), config, resume=False)
        self.variant, self.out = variant, out
        self.images: Tensor = next(self.batches.epoch(0))[0]
        self.look({"epoch": 0})

    def end_epoch(self, display: Display) -> None:
        super().end_epoch(display)
        self.look(self.position.history[-1])

    def look(self, record: dict[str, Any]) -> None:
        kept = {key: record.get(key) for key in ("epoch", "train_loss", "train_accuracy", "validation_accuracy")}
        for of in ("activations", "poses"):
            for layer, largest, smallest in measure_jacobian(self.model, self.images, IMAGES, of):
                values = {"largest": largest.mean().item(), "smallest": smallest.mean().item()}
                self.write({"layer": layer, "of": of, **values, **kept})

    def write(self, line: dict[str, Any]) -> None:
        raised = revisions_of(self.config)
        about = {"variant": self.variant, "seed": self.config.seed, **({"revisions": raised} if raised else {})}
        append_line(self.out, {**about, **line})


def build(variant: str, data: str, seed: int, out: Path) -> Config:
    """The run that fills Table 2's row "Ours" with the budget `cpu`, changed by the variant."""
    cell = find_cell(f"fm/table2/ours-{data}")
    assert isinstance(cell.how, Train)
    config = apply_budget(cell.how.build(), "cpu", cell)
    model = replace(config.model, options=config.model.options | VARIANTS[variant])
    return replace(config, model=model, recipe=f"{config.recipe}.{variant}", seed=seed, out=out, device="cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--data", choices=("fashion-mnist", "cifar10", "svhn"), default="fashion-mnist")
    parser.add_argument("--out", type=Path, default=Path("singular.jsonl"))
    flags = parser.parse_args()
    for variant in flags.variants:
        for seed in flags.seeds:
            with tempfile.TemporaryDirectory() as folder:
                run = Watched(build(variant, flags.data, seed, Path(folder)), variant, flags.out)
                try:
                    run.run()
                except FloatingPointError as error:
                    run.write({"epoch": run.position.epoch + 1, "failed": str(error)})


if __name__ == "__main__":
    main()
