"""What a model says of many images, and what follows from it: confusion, accuracy by class, calibration, mistakes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from torchcaps import scores as scored
from torchcaps.config import LossConfig, LossName
from torchcaps.data import Batches
from torchcaps.data.splits import in_turn
from torchcaps.losses import multi_hot, score_form, score_threshold
from torchcaps.metrics import predict
from torchcaps.models import Model

LIMIT = 10_000  # images that are looked at

READINGS = {
    "margin": "The margin loss asks the capsule of a class that is there for a length of at least 0.9, and all others "
    "for at most 0.1. A score is read as it is: how surely its class is there (Sabour et al. 2017, section 2). Each "
    "class is judged by itself, so the scores of an image need not add up to 1.",
    "spread": "The spread loss asks the activation of the class that is there to lie above all others by a margin "
    "(Hinton et al. 2018, section 3). A score is read as it is: how surely its class is there. Those of an image need "
    "not add up to 1.",
    "squared-hinge": "The squared hinge loss asks the class that is there for a score of at least 1, and all others "
    "for at most -1. A score is read as it is, cut to [0, 1]: of lengths, how surely the class is there.",
    "cross-entropy": "The scores are logits: their softmax is read as the probabilities of the classes, which add up "
    "to 1.",
    "normalised-cross-entropy": "The scores are activations of at least 0: each one's share of their sum is read as "
    "the probability of its class.",
    "binary-cross-entropy": "The scores are logits of each class by itself: their sigmoid is read as the probability "
    "that the class is there. Those of an image need not add up to 1.",
}


ABOVE = (
    "Scores of {above:,} of the {images:,} images are above 1, as neither lengths nor probabilities are, and are read "
    "as 1: they order the classes, and do not say how sure the network is."
)


@dataclass(frozen=True)
class Measured:
    """Scores of n images, on the CPU."""

    scores: Tensor  # float32 [n, classes]
    probabilities: Tensor  # float32 [n, classes], in [0, 1]; several may be 1, of which the scores say the highest
    targets: Tensor  # bool [n, classes]
    predicted: Tensor  # bool [n, classes]
    indices: Tensor  # int64 [n], places in the split
    several: bool  # whether the labels are sets
    better: Tensor  # int64 [n], classes whose score is above that of the best class that is there

    @property
    def right(self) -> Tensor:
        """Return bool [n]; of label sets, those that are matched exactly."""
        return (self.predicted == self.targets).all(1)


class Calibration(NamedTuple):
    confidence: Tensor  # [bins], mean probability in each; NaN where it is empty
    accuracy: Tensor  # [bins], share of them that were so
    counts: Tensor  # int64 [bins]
    error: float  # mean distance of the two, weighted by count; NaN where a probability is no number


def to_probabilities(scores: Tensor, loss: LossName) -> Tensor:
    """Return scores [b, classes] as probabilities in [0, 1], on the CPU; `READINGS` says how, for each loss."""
    form = score_form(LossConfig(loss))
    return torch.from_numpy(scored.to_probabilities(scores.detach().float().cpu().numpy(), form))


def explain_scores(measured: Measured, loss: LossName) -> str:
    """Return how scores were read as probabilities, in words, and where they cannot be such."""
    above = int((measured.scores > 1).any(1).sum())
    if not above or score_form(LossConfig(loss)).to_probability != "none":
        return READINGS[loss]
    return f"{READINGS[loss]} {ABOVE.format(above=above, images=len(measured.scores))}"


class Watch:
    """Scores and labels of many batches, from which `measured` is made; `evaluate` of `train` takes one.

    Args:
        loss: what the model was trained with.
        shown: labels of each image; None where images differ in it.
    """

    def __init__(self, loss: LossConfig, shown: int | None = 1):
        self.loss, self.shown = loss, shown
        self.scores: list[Tensor] = []
        self.labels: list[Tensor] = []

    def __call__(self, scores: Tensor, labels: Tensor) -> None:
        """Take in scores [b, classes] and labels int64 [b], or label sets [b, classes]."""
        self.scores.append(scores.detach().float().cpu())
        self.labels.append(labels.cpu())

    def measured(self, indices: Tensor | None = None) -> Measured:
        """Return what was taken in; `indices` int64 [n] are the places of the images in the split, None: all in
        order.
        """
        scores, labels = torch.cat(self.scores), torch.cat(self.labels)
        targets = multi_hot(labels, scores.shape[1]).bool()
        several = labels.ndim == 2
        predicted = predict(scores, self.shown if several else 1, score_threshold(self.loss))
        places = torch.arange(len(labels)) if indices is None else indices
        own, at = scores.masked_fill(~targets, -math.inf).max(1, keepdim=True)
        behind = (scores < own) | ((scores == own) & (torch.arange(scores.shape[1]) >= at))  # as in an argmax
        better = (~behind).sum(1)  # what is no number is before all
        read = to_probabilities(scores, self.loss.name)
        return Measured(scores, read, targets, predicted, places, several, better)


@torch.no_grad()
def measure(fabric: Fabric, model: Model, batches: Batches, loss: LossConfig, limit: int = LIMIT) -> Measured:
    """Return what `model` says of the images of `batches`: of all, or of about `limit` in batches evenly spaced.

    The model sees no labels and is left in evaluation mode; of several views of an image the scores are averaged.
    """
    model.eval()
    size, wanted = batches.batch_size, max(1, -(-limit // batches.batch_size))
    steps = range(len(batches)) if len(batches) <= wanted else [n * len(batches) // wanted for n in range(wanted)]
    watch, indices = Watch(loss, batches.images.shown), []
    stream = batches.epoch(0) if len(steps) == len(batches) else (next(batches.epoch(0, start=step)) for step in steps)
    for step, (images, labels) in zip(steps, stream, strict=True):
        views = images.unbind(1) if images.ndim == 5 else (images,)
        with fabric.autocast():
            watch(torch.stack([model(view).scores for view in views]).mean(0), labels)
        indices.append(step * size + torch.arange(len(labels)))
    return watch.measured(torch.cat(indices))


def confusion(targets: Tensor, predicted: Tensor) -> Tensor:
    """Return counts int64 [classes, classes], rows the truth, of label sets bool [n, classes].

    A class that is there and found counts on the diagonal; of each image every missed class counts with every one that
    was found in its place. With one label an image this is the usual matrix.
    """
    missed, spurious = (targets & ~predicted).double(), (predicted & ~targets).double()
    counts = missed.T @ spurious
    return (counts + (targets & predicted).double().sum(0).diag()).round().long()


def class_accuracy(targets: Tensor, predicted: Tensor) -> Tensor:
    """Return the share of the images that show a class in which it is found, [classes]; NaN where no image shows it."""
    return (targets & predicted).sum(0) / targets.sum(0)


def calibrate(probabilities: Tensor, came_true: Tensor, bins: int = 10) -> Calibration:
    """Return how often what was given a probability [m] came true, bool [m], in bins of equal width; what is no number
    falls into the first.
    """
    place = (probabilities.nan_to_num(0) * bins).long().clamp(0, bins - 1)
    count = torch.bincount(place, minlength=bins)
    confidence = torch.bincount(place, probabilities.double(), bins) / count
    accuracy = torch.bincount(place, came_true.double(), bins) / count
    error = (confidence - accuracy).abs().masked_fill(count == 0, 0).mul(count).sum() / count.sum()
    return Calibration(confidence, accuracy, count, error.item())


def calibrate_measured(measured: Measured) -> Calibration:
    """Return calibration of the winning class of each image; of label sets, of every class in every image."""
    if measured.several:
        return calibrate(measured.probabilities.flatten(), measured.targets.flatten())
    best = measured.scores.argmax(1, keepdim=True)
    return calibrate(measured.probabilities.gather(1, best)[:, 0], measured.targets.gather(1, best)[:, 0])


def worst(measured: Measured, count: int) -> Tensor:
    """Return rows of up to `count` wrong images, int64, the worst first.

    An image is the worse the likelier the likeliest class that was found in error, and the less likely the least likely
    class that was missed.
    """
    p, targets, predicted = measured.probabilities, measured.targets, measured.predicted
    found = (p * (predicted & ~targets)).amax(1)
    missed = ((1 - p) * (targets & ~predicted)).amax(1)
    order = (found + missed).masked_fill(measured.right, -1.0).argsort(descending=True, stable=True)
    return order[: min(count, int((~measured.right).sum()))]


def choose_right(measured: Measured, count: int) -> Tensor:
    """Return rows of up to `count` right images, int64: one of each class in turn, the first of the split before
    others.
    """
    rows = measured.right.nonzero().flatten()
    return rows[in_turn(measured.targets[rows].long().argmax(1), count)]
