"""Draw pictures/kept-discriminative.png: accuracy on the digits against primary capsules kept, in about a minute.

python docs/draw_kept.py

One line is of networks that were trained with the proximal step on whole rows, at several lambda; the other is the
first of them, with its least important capsules taken away afterwards.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from torchcaps.config import CoefficientConfig, Config, DataConfig, ModelConfig, OptimiserConfig
from torchcaps.data import load_data
from torchcaps.inspect.figures import draw_kept, style
from torchcaps.inspect.sparsity import accuracy_by_kept
from torchcaps.models import CapsNet
from torchcaps.models.smaller import count_zeros
from torchcaps.train import fit, load_run
from torchcaps.train.machine import build_fabric

PICTURES = Path(__file__).parent / "pictures"
OPTIONS = {
    "channels": 16,
    "primary": 8,
    "kernel": 5,
    "initial": 1.0,
    "norm": "rows",
    "proximal": True,
    "absent_weight": 1 / 9,
}
PENALTIES = (3.2, 5.12, 6.4, 7.68, 9.6, 12.8)  # lambda of Eq. 14, over batches of 64


def train(penalty: float, out: Path) -> tuple[CapsNet, Config, float]:
    """The network, its config, and its accuracy on the test split."""
    config = Config(
        recipe=f"rows-{penalty:g}",
        model=ModelConfig("discriminative-capsnet", {**OPTIONS, "penalty_weight": penalty}),
        data=DataConfig("digits", image_size=16, validation=0.0),
        optimiser=OptimiserConfig("adam", lr=3e-3),
        coefficients=CoefficientConfig(lr=0.18),
        epochs=15,
        batch_size=64,
        precision="fp32",
        out=out,
    )
    result = fit(config)
    model, _ = load_run(result.folder)
    assert isinstance(model, CapsNet)
    return model, config, result.test_accuracy


def main() -> None:
    points: list[tuple[int, float]] = []
    curve: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory() as out:
        for penalty in PENALTIES:
            model, config, accuracy = train(penalty, Path(out))
            (found,) = count_zeros(model)
            points.append((found.children - found.dead, accuracy))
            print(f"lambda {penalty:g}: {found}, test accuracy {accuracy:.2%}")
            if not curve:
                fabric = build_fabric(replace(config, device="cpu"))
                test = load_data(config.data).evaluation("test", 64)
                counts = sorted({round(found.children / 1.3**n) for n in range(18)} - {0})
                curve = accuracy_by_kept(fabric, model, test, config.loss, counts)
    curves = {"taken away afterwards": curve, "trained, by lambda": points}
    with style():
        draw_kept(curves).savefig(PICTURES / "kept-discriminative.png", dpi=110)


if __name__ == "__main__":
    main()
