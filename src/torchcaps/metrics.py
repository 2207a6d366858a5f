"""What counts as right where images show several classes at once: three measures, each defined in one sentence.

`scores` are [b, classes], lengths or logits; `targets` are [b, classes] of 0 and 1. How many classes an image shows is
`shown`; where that is unknown (None), the classes whose score exceeds `threshold` are predicted.
"""

from __future__ import annotations

import torch
from torch import Tensor


def predict(scores: Tensor, shown: int | None, threshold: float = 0.5) -> Tensor:
    """Return the predicted classes, bool [b, classes]: the `shown` of the highest scores, or all above `threshold`."""
    if shown is None:
        return scores > threshold
    best = scores.topk(shown, 1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)


def exact_match(predicted: Tensor, targets: Tensor) -> Tensor:
    """Return for each image whether its predicted classes are exactly those shown, bool [b]; their mean is the
    accuracy.
    """
    return (predicted == targets.bool()).all(1)


def labels_found(predicted: Tensor, targets: Tensor) -> Tensor:
    """Return how many of the labels of each image are among the predicted, int64 [b]: summed over images and divided by
    the sum of `targets`, per-digit accuracy.
    """
    return (predicted & targets.bool()).sum(1)


def xnodr_top2(scores: Tensor, targets: Tensor) -> Tensor:
    """Return for each image whether its smallest digit is among the two highest scores, bool [b]; their mean is XnODR's
    "Top2".

    It credits one digit of two, and is what Keras' top-k accuracy makes of a target with two ones.
    """
    smallest = targets.argmax(1, keepdim=True)  # the first of equal ones
    return (scores.topk(2, 1).indices == smallest).any(1)
