"""How many primary capsules a discriminative network needs: such as a penalty has thinned, and one thinned afterwards.

Networks are trained on the digits with the proximal step on whole rows, at several lambda; of the first of them the
least important capsules are taken away afterwards, down to the numbers that the others have left. One seed. Each
network is a line of results/kept.jsonl, with its accuracy on the test split; `docs/draw_kept.py` draws the newest.

python benchmarks/kept.py
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from report import RESULTS

from torchcaps.config import CoefficientConfig, Config, DataConfig, ModelConfig, OptimiserConfig
from torchcaps.data import load_data
from torchcaps.inspect.sparsity import accuracy_by_kept
from torchcaps.models import CapsNet
from torchcaps.models.smaller import count_zeros
from torchcaps.revisions import revisions_of
from torchcaps.tables.lines import append_line
from torchcaps.tables.records import config_hash
from torchcaps.train import fit, load_run
from torchcaps.train.machine import describe_machine
from torchcaps.train.processes import build_fabric

PATH = RESULTS / "kept.jsonl"
PENALTIES = (3.2, 5.12, 6.4, 7.68, 9.6, 12.8)  # lambda of Eq. 14, over batches of 64
OPTIONS = {
    "channels": 16,
    "primary": 8,
    "kernel": 5,
    "initial": 1.0,
    "norm": "rows",
    "proximal": True,
    "absent_weight": 1 / 9,
}


def build(penalty: float) -> Config:
    return Config(
        recipe=f"rows-{penalty:g}",
        model=ModelConfig("discriminative-capsnet", {**OPTIONS, "penalty_weight": penalty}),
        data=DataConfig("digits", image_size=16, validation=0.0),
        optimiser=OptimiserConfig("adam", lr=3e-3),
        coefficients=CoefficientConfig(lr=0.18),
        epochs=15,
        batch_size=64,
        precision="fp32",
    )


def train(config: Config, out: Path) -> tuple[CapsNet, dict[str, Any]]:
    """The network, and what its line says of it."""
    result = fit(replace(config, out=out))
    model, _ = load_run(result.folder)
    assert isinstance(model, CapsNet)
    (found,) = count_zeros(model)
    line = {
        "penalty": config.model.options["penalty_weight"],
        "seed": config.seed,
        "config_hash": config_hash(config),
        "revisions": revisions_of(config),
        "children": found.children,
        "kept": found.children - found.dead,
        "test_accuracy": result.test_accuracy,
    }
    return model, line


def main() -> None:
    configs = [build(penalty) for penalty in PENALTIES]
    with tempfile.TemporaryDirectory() as out:
        found = [train(config, Path(out)) for config in configs]
    (model, first), *_ = found
    counts = {round(first["children"] / 1.3**n) for n in range(18)} | {line["kept"] for _, line in found}
    fabric = build_fabric(replace(configs[0], device="cpu"))
    test = load_data(configs[0].data).evaluation("test", 64)
    first["taken_away"] = accuracy_by_kept(fabric, model, test, configs[0].loss, sorted(counts - {0}))
    for _, line in found:
        append_line(PATH, line | {"environment": describe_machine()})
        print(*(f"{name} {line[name]}" for name in ("penalty", "kept", "test_accuracy")))


if __name__ == "__main__":
    main()
