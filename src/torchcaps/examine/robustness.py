"""Accuracy on images that are turned, moved, scaled and sheared, more and more.

A network that is more accurate on images as they are is mostly so on changed ones as well; so beside the accuracy
stands the share that is kept of what was right. By it networks are compared as if all were right on images as they are.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from torchcaps.examine.found import Curve
from torchcaps.examine.sample import Move, Sample
from torchcaps.models import Model

ANGLES = (0.0, 10.0, 20.0, 30.0, 45.0, 60.0)  # degrees
SHIFTS = (0.0, 1 / 16, 1 / 8, 3 / 16, 1 / 4)  # of the shorter side, in whole pixels
SCALES = (0.6, 0.8, 1.0, 1.2, 1.4)
SHEARS = (0.0, 10.0, 20.0, 30.0, 40.0)  # degrees


def measure_robustness(model: Model, sample: Sample) -> list[Curve]:
    """Return curves by angle, shift, scale and shear: accuracy, and the share that is kept of what is right unchanged,
    None where nothing is.

    Images are turned and sheared to either side in turn, and moved to the four sides in turn; zeros enter.

    Args:
        model: in evaluation mode; it need not have capsules.
        sample: the images.
    """
    count = len(sample)
    right = (sample.answers(model) == sample.targets).all(1)
    sign = 1 - 2 * (torch.arange(count) % 2).float()
    side = torch.arange(count) % 4
    none = Move.none(count)

    def keep(still: Tensor) -> float | None:
        return ((still & right).sum() / right.sum()).item() if right.any() else None

    def measure(by: str, values: tuple[float, ...], moves: list[Move]) -> Curve:
        still = [(sample.answers(model, move=each) == sample.targets).all(1) for each in moves]
        return Curve(by, values, tuple(each.double().mean().item() for each in still), tuple(map(keep, still)))

    pixels = tuple(dict.fromkeys(float(round(share * sample.side)) for share in SHIFTS))
    down = torch.tensor([1, -1, 0, 0])[side]
    across = torch.tensor([0, 0, 1, -1])[side]
    return [
        measure("angle", ANGLES, [replace(none, angle=each * sign) for each in ANGLES]),
        measure("shift", pixels, [replace(none, down=int(each) * down, right=int(each) * across) for each in pixels]),
        measure("scale", SCALES, [replace(none, scale=torch.full((count,), each)) for each in SCALES]),
        measure("shear", SHEARS, [replace(none, shear=each * sign) for each in SHEARS]),
    ]
