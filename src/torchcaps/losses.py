"""Losses on `Output`: of the scores, of the reconstruction, and what the model itself adds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from torchcaps.capsules import widen
from torchcaps.config import LossConfig, LossName, ScoreKind
from torchcaps.forms import ScoreForm
from torchcaps.models.registry import Output

Reading = Literal["softmax", "share", "sigmoid", "none"]
_FORMS: dict[LossName, tuple[ScoreKind, Reading]] = {  # what it takes scores for, and what makes probabilities of them
    "margin": ("length", "none"),
    "spread": ("probability", "none"),
    "squared-hinge": ("length", "none"),
    "cross-entropy": ("logit", "softmax"),
    "normalised-cross-entropy": ("length", "share"),
    "binary-cross-entropy": ("logit", "sigmoid"),
}


class Criterion(Protocol):
    """The loss of a batch, as `build_criterion` makes it from a configuration."""

    def __call__(self, output: Output, images: Tensor, targets: Tensor, progress: float = 1.0) -> Tensor:
        """Return the loss, a scalar, of images [b, c, h, w] and targets [b, classes], at `progress` in [0, 1] of the
        run.

        In place of the images may stand the parts [b, m, c, h, w] that are to be reconstructed one by one.
        """
        ...


def multi_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Return targets [b, classes] of 0 and 1, from class indices [b] or from label sets that are already so encoded.

    No device is waited for.

    Raises:
        ValueError: for labels of another shape, and for class indices that are no whole numbers.
    """
    if labels.ndim == 2 and labels.shape[1] == num_classes:
        return labels.float()
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"labels are {labels.dtype} {list(labels.shape)}; they must be class indices [b], whole numbers, or sets "
            f"[b, {num_classes}] of 0 and 1"
        )
    hot = labels.new_zeros(len(labels), num_classes, dtype=torch.float32)
    return hot.scatter_(1, labels.long().unsqueeze(1), 1.0)


def _check(scores: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless both are [b, classes]: other targets would broadcast, and the loss be another."""
    if scores.ndim != 2 or scores.shape != targets.shape:
        raise ValueError(
            f"scores are {list(scores.shape)} and targets {list(targets.shape)}; both must be [b, classes]: "
            "torchcaps.losses.multi_hot(labels, num_classes) makes targets of class indices [b]"
        )


def margin_loss(
    scores: Tensor, targets: Tensor, positive: float = 0.9, negative: float = 0.1, weight: float = 0.5
) -> Tensor:
    """Return the margin loss of Sabour et al. 2017, Eq. 4, a scalar: summed over the classes, averaged over the batch.

    T max(0, m+ - |v|)^2 + weight (1 - T) max(0, |v| - m-)^2, with `scores` |v| and `targets` T, both [b, classes].
    """
    _check(scores, targets)
    scores = widen(scores)
    present = F.relu(positive - scores).square()
    absent = F.relu(scores - negative).square()
    return (targets * present + weight * (1 - targets) * absent).sum(1).mean()


def spread_loss(scores: Tensor, targets: Tensor, margin: float = 0.9) -> Tensor:
    """Return the spread loss of Hinton et al. 2018, Eq. 3, a scalar: max(0, margin - (a_t - a_i))^2, summed over the
    classes i other than t, averaged over the batch.

    `scores` are activations [b, classes] in [0, 1]. Of several labels each is a t in turn, and no label is an i.
    """
    _check(scores, targets)
    scores = widen(scores)
    apart = scores.unsqueeze(2) - scores.unsqueeze(1)  # [b, t, i], a_t - a_i
    pairs = targets.unsqueeze(2) * (1 - targets).unsqueeze(1)
    return (pairs * F.relu(margin - apart).square()).sum((1, 2)).mean()


def squared_hinge_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over classes and batch of max(0, 1 - y s)^2, with y = 1 for classes that are there and -1 for
    others.

    The loss of XNOR-Net that Sun et al. 2023 train XnODR and XnIDR with, averaged as Keras' `squared_hinge` is.
    """
    _check(scores, targets)
    return F.relu(1 - (2 * targets - 1) * widen(scores)).square().mean()


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the softmax cross-entropy of logits [b, classes], averaged over the batch; several labels share the
    probability equally, and an image without labels adds nothing.
    """
    _check(scores, targets)
    return F.cross_entropy(widen(scores), targets / targets.sum(1, keepdim=True).clamp_min(1))


def normalised_cross_entropy(scores: Tensor, targets: Tensor, eps: float = 1e-7) -> Tensor:
    """Return the mean of -log(s_t / sum_j s_j), of activations [b, classes] of at least 0, which need not sum to one,
    cut at `eps`.

    What Keras' categorical cross-entropy makes of activations: Zhao et al. 2020's code feeds it |s|^2 / (1 + |s|^2).
    """
    _check(scores, targets)
    scores = widen(scores)
    share = scores / scores.sum(1, keepdim=True).clamp_min(eps)
    weights = targets / targets.sum(1, keepdim=True).clamp_min(1)  # of an image without labels all are 0
    return -(weights * share.clamp(eps, 1 - eps).log()).sum(1).mean()


def binary_cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of the sigmoid of logits [b, classes], each label by itself, averaged over classes and
    batch.

    The loss for several labels of Tsai et al. 2020.
    """
    _check(scores, targets)
    return F.binary_cross_entropy_with_logits(widen(scores), targets)


def smooth(targets: Tensor, share: float) -> Tensor:
    """Return `targets` [b, classes] of 0 and 1, of which `share` in [0, 1) is spread over all classes (Szegedy et al.
    2016).
    """
    return (1 - share) * targets + share * targets.mean(1, keepdim=True)


def reconstruction_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Return the squared error, summed over each image and averaged over the batch; both [b, c, h, w], images in [0,
    1].

    Of parts, both [b, m, c, h, w], it is summed over all parts of an image.
    """
    return (widen(reconstruction) - images).square().flatten(1).sum(1).mean()


def score_threshold(config: LossConfig) -> float:
    """Return the score above which a class counts as shown: of binary cross-entropy the logit of the threshold,
    which is a probability there.
    """
    if config.name != "binary-cross-entropy":
        return config.threshold
    return math.log(config.threshold / (1 - config.threshold))


def takes_scores(loss: LossName, scores: ScoreKind | None) -> bool:
    """Return whether `loss` is meant for scores of this kind: logits are one, lengths and probabilities the other.

    True of scores of which nobody says what they are.
    """
    return scores is None or (scores == "logit") == (_FORMS[loss][0] == "logit")


def usual_loss(scores: ScoreKind | None, shown: int | None = 1) -> LossName:
    """Return the loss for scores of this kind, of images that show one class each or (`shown` another number) a set."""
    if scores == "logit":
        return "cross-entropy" if shown == 1 else "binary-cross-entropy"
    return "spread" if scores == "probability" and shown == 1 else "margin"


def score_form(config: LossConfig, shown: int | None = 1, scores: ScoreKind | None = None) -> ScoreForm:
    """Return what the scores of a model are that was trained with the loss that `config` describes.

    Args:
        config: the loss; it says how its scores are read, as `inspect.measured.READINGS` does in words.
        shown: labels of each image; None where images differ in it.
        scores: what the model says that they are (`Model.scores`); None: what the loss takes them for.
    """
    kind, to_probability = _FORMS[config.name]
    return ScoreForm(scores or kind, to_probability, score_threshold(config), shown)


def score_loss(config: LossConfig) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Return the loss that `config` names, of scores and targets [b, classes] and the progress of the run in [0, 1]."""
    first, last = config.spread_margin
    losses: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
        "margin": lambda scores, targets, _: margin_loss(scores, targets),
        "spread": lambda scores, targets, progress: spread_loss(scores, targets, first + (last - first) * progress),
        "squared-hinge": lambda scores, targets, _: squared_hinge_loss(scores, targets),
        "cross-entropy": lambda scores, targets, _: cross_entropy(scores, targets),
        "normalised-cross-entropy": lambda scores, targets, _: normalised_cross_entropy(scores, targets),
        "binary-cross-entropy": lambda scores, targets, _: binary_cross_entropy(scores, targets),
    }
    return losses[config.name]


def weigh(
    loss: Callable[[Tensor, Tensor, float], Tensor], weights: Tensor
) -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
    """Return `loss`, a mean over images, of scores, targets, labels [b, classes] of 0 and 1, and the progress of the
    run, in which each image counts by the mean of the `weights` [classes] of its labels; one without labels by 1.
    """

    def weighted(scores: Tensor, targets: Tensor, labels: Tensor, progress: float) -> Tensor:
        each = torch.func.vmap(lambda row, target: loss(row[None], target[None], progress))(scores, targets)  # [b]
        shown = labels.sum(1)
        counts = torch.where(shown > 0, labels @ weights.to(labels) / shown.clamp_min(1), 1.0)
        return (counts * each).mean()

    return weighted


def build_criterion(config: LossConfig, weights: Tensor | None = None) -> Criterion:
    """Return the loss that `config` describes: of the scores, of the reconstruction where it has a weight, and the
    penalty that the model adds, where it does: see `added_penalty`.

    Args:
        config: the loss; its `class_weights` are left to `weights`.
        weights: of the classes, [classes], by which the loss of the scores counts images; None: all alike.

    The criterion raises:
        ValueError: when targets are not of the shape of the scores, and when a reconstruction is asked of a model that
            makes none.
    """
    of_scores = score_loss(config)
    weighted = None if weights is None else weigh(of_scores, weights)

    def criterion(output: Output, images: Tensor, targets: Tensor, progress: float = 1.0) -> Tensor:
        _check(output.scores, targets)
        labels, targets = targets, smooth(targets, config.smoothing) if config.smoothing else targets
        if weighted is None:
            loss = of_scores(output.scores, targets, progress)
        else:
            loss = weighted(output.scores, targets, labels, progress)
        if config.average:
            loss = loss / targets.shape[1]
        if config.reconstruction:
            if "reconstruction" not in output.aux:
                raise ValueError(
                    f"loss.reconstruction is {config.reconstruction}, but the model has no decoder: set it to 0"
                )
            loss = loss + config.reconstruction * reconstruction_loss(output.aux["reconstruction"], images)
        added = added_penalty(config, output, progress)
        return loss if added is None else loss + added

    return criterion


def added_penalty(config: LossConfig, output: Output, progress: float = 1.0) -> Tensor | None:
    """Return what a model adds to its loss, a scalar, at `progress` in [0, 1] of the run; None of one that adds
    nothing.

    `output.aux["penalty"]` has the weight that the model gives it; with `config.penalty` it is that times the sum of
    `output.aux["penalties"]`, the terms without a weight. Both rise from 0 where a warm-up is asked for.
    """
    if "penalty" not in output.aux:
        return None
    added = output.aux["penalty"] if config.penalty is None else config.penalty * output.aux["penalties"].sum()
    return added * min(1.0, progress / config.penalty_warmup) if config.penalty_warmup else added
