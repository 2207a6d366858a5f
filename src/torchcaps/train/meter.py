"""Mean loss and accuracy over many batches and all processes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassStatScores


class Score(NamedTuple):
    loss: float  # mean per image
    errors: int  # images whose highest score is not their label's
    images: int

    @property
    def accuracy(self) -> float:
        """Share in [0, 1]."""
        return (self.images - self.errors) / self.images


class Meter:
    """Sums over batches; `compute` and `state` take in every process, so all must call them together."""

    def __init__(self, num_classes: int, device: torch.device):
        self.loss = MeanMetric(nan_strategy="disable").to(device)
        self.counts = MulticlassStatScores(num_classes, average="micro", validate_args=False).to(device)
        self._metrics = {"loss": self.loss, "counts": self.counts}
        for metric in self._metrics.values():
            metric.persistent(True)

    def update(self, loss: Tensor, scores: Tensor, labels: Tensor) -> None:
        """Take in a batch: its mean loss, a scalar, scores [b, classes] and labels int64 [b]."""
        self.loss.update(loss, weight=len(labels))
        self.counts.update(scores, labels)

    def compute(self) -> Score:
        """What has been taken in since the last reset."""
        right, _, _, _, images = self.counts.compute().tolist()
        return Score(float(self.loss.compute()), images - right, images)

    def reset(self) -> None:
        for metric in self._metrics.values():
            metric.reset()

    def state(self) -> dict:
        """The sums over all processes, to be continued by one of them after `load`."""
        state = {}
        for name, metric in self._metrics.items():
            with metric.sync_context():
                state[name] = {key: value.clone() for key, value in metric.state_dict().items()}
        return state

    def load(self, state: dict) -> None:
        for name, metric in self._metrics.items():
            metric.load_state_dict(state[name])
