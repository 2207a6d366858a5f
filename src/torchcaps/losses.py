"""Losses on `Output`: of the scores, and of the reconstruction."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from torchcaps.capsules import widen
from torchcaps.config import LossConfig
from torchcaps.models.registry import Output

Criterion = Callable[[Output, Tensor, Tensor], Tensor]


def multi_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Targets [b, classes] of 0 and 1 from class indices [b] or from label sets that are already so encoded."""
    if labels.ndim == 2:
        return labels.float()
    return F.one_hot(labels, num_classes).float()


def margin_loss(
    scores: Tensor, targets: Tensor, positive: float = 0.9, negative: float = 0.1, weight: float = 0.5
) -> Tensor:
    """Sabour et al. 2017, Eq. 4: summed over the classes, averaged over the batch.

    T max(0, m+ - |v|)^2 + weight (1 - T) max(0, |v| - m-)^2, with `scores` |v| and `targets` T, both [b, classes].
    """
    scores = widen(scores)
    present = F.relu(positive - scores).square()
    absent = F.relu(scores - negative).square()
    return (targets * present + weight * (1 - targets) * absent).sum(1).mean()


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Softmax cross-entropy of logits [b, classes]; several labels share the probability equally."""
    return F.cross_entropy(widen(scores), targets / targets.sum(1, keepdim=True))


def reconstruction_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Squared error, summed over each image and averaged over the batch; both [b, c, h, w], images in [0, 1]."""
    return (widen(reconstruction) - images).square().flatten(1).sum(1).mean()


SCORE_LOSSES = {"margin": margin_loss, "cross-entropy": cross_entropy}


def build_criterion(config: LossConfig) -> Criterion:
    """The loss that `config` names, as a function of output, images [b, c, h, w] and targets [b, classes].

    Raises:
        ValueError: when a reconstruction is asked of a model that makes none.
    """
    score_loss = SCORE_LOSSES[config.name]

    def criterion(output: Output, images: Tensor, targets: Tensor) -> Tensor:
        loss = score_loss(output.scores, targets)
        if config.reconstruction:
            if "reconstruction" not in output.aux:
                raise ValueError(
                    f"loss.reconstruction is {config.reconstruction}, but the model has no decoder: set it to 0"
                )
            loss = loss + config.reconstruction * reconstruction_loss(output.aux["reconstruction"], images)
        return loss

    return criterion
