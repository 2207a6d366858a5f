"""What a model says of many images, and what follows from it: confusion, accuracy by class, calibration, mistakes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from torchcaps.config import LossConfig
from torchcaps.data import Batches
from torchcaps.losses import multi_hot, score_threshold
from torchcaps.metrics import predict
from torchcaps.models import Model

LIMIT = 10_000  # images that are looked at

READINGS = {
    "margin": "The margin loss asks the capsule of a class that is there for a length of at least 0.9, and all others "
    "for at most 0.1. A length is read as it is: the probability that its class is there (Sabour et al. 2017, section "
    "2). Each class is judged by itself, so the probabilities of an image need not add up to 1.",
    "spread": "The spread loss asks the activation of the class that is there to lie above all others by a margin "
    "(Hinton et al. 2018, section 3). An activation is read as it is: the probability that its class is there. Those "
    "of an image need not add up to 1.",
    "squared-hinge": "The squared hinge loss asks the class that is there for a score of at least 1, and all others "
    "for at most -1. A score is read as it is, cut to [0, 1]: of lengths, the probability that the class is there.",
    "cross-entropy": "The scores are logits: their softmax is read as the probabilities of the classes, which add up "
    "to 1.",
    "normalised-cross-entropy": "The scores are activations of at least 0: each one's share of their sum is read as "
    "the probability of its class.",
    "binary-cross-entropy": "The scores are logits of each class by itself: their sigmoid is read as the probability "
    "that the class is there. Those of an image need not add up to 1.",
}


@dataclass(frozen=True)
class Measured:
    """Scores of n images, on the CPU."""

    probabilities: Tensor  # float32 [n, classes]
    targets: Tensor  # bool [n, classes]
    predicted: Tensor  # bool [n, classes]
    indices: Tensor  # int64 [n], places in the split
    several: bool  # whether the labels are sets

    @property
    def right(self) -> Tensor:
        """bool [n]; of label sets, those that are matched exactly."""
        return (self.predicted == self.targets).all(1)


class Calibration(NamedTuple):
    confidence: Tensor  # [bins], mean probability in each; NaN where it is empty
    accuracy: Tensor  # [bins], share of them that were so
    counts: Tensor  # int64 [bins]
    error: float  # mean distance of the two, weighted by count


def to_probabilities(scores: Tensor, loss: str) -> Tensor:
    """Scores [b, classes] as probabilities in [0, 1]; `READINGS` says how, for each loss."""
    scores = scores.float()
    match loss:
        case "cross-entropy":
            return scores.softmax(1)
        case "normalised-cross-entropy":
            return scores / scores.sum(1, keepdim=True).clamp_min(1e-7)
        case "binary-cross-entropy":
            return scores.sigmoid()
        case _:
            return scores.clamp(0, 1)


@torch.no_grad()
def measure(fabric: Fabric, model: Model, batches: Batches, loss: LossConfig, limit: int = LIMIT) -> Measured:
    """What `model` says of the images of `batches`: of all, or of about `limit` in batches evenly spaced.

    The model sees no labels and is left in evaluation mode; of several views of an image the scores are averaged.
    """
    model.eval()
    shown, size = batches.images.shown, batches.batch_size
    wanted = max(1, -(-limit // size))
    steps = range(len(batches)) if len(batches) <= wanted else [n * len(batches) // wanted for n in range(wanted)]
    pieces, several = [], False
    stream = batches.epoch(0) if len(steps) == len(batches) else (next(batches.epoch(0, start=step)) for step in steps)
    for step, (images, labels) in zip(steps, stream, strict=True):
        views = images.unbind(1) if images.ndim == 5 else (images,)
        with fabric.autocast():
            scores = torch.stack([model(view).scores for view in views]).mean(0)
        several = labels.ndim == 2
        targets = multi_hot(labels, scores.shape[1]).bool()
        predicted = predict(scores, shown if several else 1, score_threshold(loss))
        indices = step * size + torch.arange(len(labels))
        pieces.append((to_probabilities(scores, loss.name), targets, predicted, indices))
    probabilities, targets, predicted, indices = (torch.cat(part).cpu() for part in zip(*pieces, strict=True))
    return Measured(probabilities, targets, predicted, indices, several)


def confusion(targets: Tensor, predicted: Tensor) -> Tensor:
    """Counts int64 [classes, classes], rows the truth, of label sets bool [n, classes].

    A class that is there and found counts on the diagonal; of each image every missed class counts with every one that
    was found in its place. With one label an image this is the usual matrix.
    """
    missed, spurious = (targets & ~predicted).double(), (predicted & ~targets).double()
    counts = missed.T @ spurious
    return (counts + (targets & predicted).double().sum(0).diag()).round().long()


def class_accuracy(targets: Tensor, predicted: Tensor) -> Tensor:
    """Share of the images that show a class in which it is found, [classes]; NaN where no image shows it."""
    return (targets & predicted).sum(0) / targets.sum(0)


def calibrate(probabilities: Tensor, came_true: Tensor, bins: int = 10) -> Calibration:
    """How often what was given a probability [m] came true, bool [m], in bins of equal width."""
    place = (probabilities * bins).long().clamp(0, bins - 1)
    count = torch.bincount(place, minlength=bins)
    confidence = torch.bincount(place, probabilities.double(), bins) / count
    accuracy = torch.bincount(place, came_true.double(), bins) / count
    error = (confidence - accuracy).abs().nan_to_num().mul(count).sum() / count.sum()
    return Calibration(confidence, accuracy, count, error.item())


def calibrate_measured(measured: Measured) -> Calibration:
    """Calibration of the winning class of each image; of label sets, of every class in every image."""
    if measured.several:
        return calibrate(measured.probabilities.flatten(), measured.targets.flatten())
    best = measured.probabilities.argmax(1, keepdim=True)
    return calibrate(measured.probabilities.gather(1, best)[:, 0], measured.targets.gather(1, best)[:, 0])


def worst(measured: Measured, count: int) -> Tensor:
    """Rows of up to `count` wrong images, int64, the worst first.

    An image is the worse the likelier the likeliest class that was found in error, and the less likely the least likely
    class that was missed.
    """
    p, targets, predicted = measured.probabilities, measured.targets, measured.predicted
    found = (p * (predicted & ~targets)).amax(1)
    missed = ((1 - p) * (targets & ~predicted)).amax(1)
    order = (found + missed).masked_fill(measured.right, -1.0).argsort(descending=True, stable=True)
    return order[: min(count, int((~measured.right).sum()))]


def choose_right(measured: Measured, count: int) -> Tensor:
    """Rows of up to `count` right images, int64: one of each class in turn, the first of the split before others."""
    rows = measured.right.nonzero().flatten()
    label = measured.targets[rows].long().argmax(1)
    turn = torch.zeros_like(label)
    for each in label.unique():
        turn[label == each] = torch.arange(int((label == each).sum()))
    order = (turn * measured.targets.shape[1] + label).argsort(stable=True)
    return rows[order[:count]]
