"""Blocks of fm-agreement.md that no other page has; `docs/blocks.py` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchcaps.papers import create_recipe
from torchcaps.revisions import revisions_of
from torchcaps.tables.lines import read_lines

RESULTS = Path(__file__).parent.parent / "results"
ABLATIONS = {
    "paper": "the paper's",
    "no-mean": "without 1/n",
    "no-l2": "without L2",
    "no-batch-norm": "without batch norm",
    "vector": "vector transforms",
}
EPOCHS = {0: "at the start", 1: "after 1 epoch", 10: "after 10"}
Row = tuple[str, ...]


def singular(earlier: str) -> Iterator[Row]:
    """Largest and smallest singular value of each layer while the network of each ablation trains, seed 0.

    Lines of a network whose code has changed since are called `earlier`.
    """
    now = revisions_of(create_recipe("fm/table2/ours-fashion-mnist", "cpu"))
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in read_lines(RESULTS / "singular.jsonl"):
        if not line["seed"] and line.get("of") == "activations":
            found[line["variant"], line["layer"], line["epoch"]] = line
    yield "ablation", "layer", *EPOCHS.values(), "validation (%)", "network"
    for variant, name in ABLATIONS.items():
        for level in range(3):
            lines = [found[variant, f"stack.{level}", epoch] for epoch in EPOCHS]
            values = (f"{line['largest']:.3g} / {line['smallest']:.3g}" for line in lines)
            accuracy = "" if level else f"{100 * lines[-1]['validation_accuracy']:.1f}"
            form = "" if lines[-1].get("revisions", {}) == now else earlier
            yield "" if level else name, str(level + 1), *values, accuracy, "" if level else form
