"""Mean loss and accuracies over many batches and all processes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, distributed

from torchcaps.metrics import exact_match, labels_found, predict, xnodr_top2

TOP = 5


class Score(NamedTuple):
    loss: float  # mean per image
    errors: int  # images whose predicted class, or set of classes, is not theirs
    images: int
    label_accuracy: float | None = None  # of label sets: share of the labels that are among the predicted
    xnodr_top2: float | None = None  # of label sets: see `metrics.xnodr_top2`
    top5_accuracy: float | None = None  # of single labels of six classes or more: share among the five highest scores
    penalties: tuple[float, ...] = ()  # mean per image of what the model added to the loss, and of each of its terms
    mean_class_accuracy: float | None = None  # of single labels: mean over the classes that there are of their accuracy

    @property
    def accuracy(self) -> float:
        """Return share in [0, 1]; of label sets, the share that is matched exactly."""
        return (self.images - self.errors) / self.images


class Meter:
    """Sums over batches; `compute` and `state` take in every process, so all must call them together.

    Args:
        device: that the sums are on.
        shown: labels of each image; None where images differ in it.
        threshold: score above which a class is predicted, where that is so.
        terms: of the penalty that the model adds to the loss.
        classes: of single labels, whose accuracies are counted apart; 0: they are not.
    """

    def __init__(
        self,
        device: torch.device,
        shown: int | None = 1,
        threshold: float = 0.5,
        terms: int = 0,
        classes: int = 0,
    ):
        self.shown, self.threshold = shown, threshold
        self.loss = torch.zeros((), device=device)  # summed over images
        # Of images, of those with label sets, of those that are right, of labels, of labels found, and of XnODR's top 2
        # (of single labels: of the top 5).
        self.counts = torch.zeros(6, dtype=torch.int64, device=device)
        # What the model added to the loss, and each term of it; where it adds nothing none.
        self.penalties = torch.zeros(1 + terms if terms else 0, device=device)
        self.by_class = torch.zeros(2, classes, dtype=torch.int64, device=device)  # images of each, and right ones
        self.classes = 0  # of the scores; of so few as five a top 5 says nothing

    def update(self, loss: Tensor, scores: Tensor, labels: Tensor, penalties: Tensor | None = None) -> Tensor:
        """Take in a batch: its mean loss, a scalar, scores [b, classes], labels int64 [b] or sets [b, classes], and its
        penalties [1 + terms], see `phases.Taken`.

        Returns which images are right: bool [b].
        """
        several = labels.ndim == 2
        if several:
            predicted = predict(scores, self.shown, self.threshold)
            right = exact_match(predicted, labels)
            sums = [right, labels, labels_found(predicted, labels), xnodr_top2(scores, labels)]
        else:
            right = scores.argmax(1) == labels
            self.classes = scores.shape[1]
            if self.by_class.numel():
                self.by_class.scatter_add_(
                    1, labels.expand(2, -1), torch.stack([torch.ones_like(labels), right]).long()
                )
            best = scores.topk(min(TOP, self.classes), 1).indices
            sums = [right, torch.ones_like(labels), right, (best == labels.unsqueeze(1)).any(1)]
        self.loss += loss * len(labels)
        self.counts[: 1 + several] += len(labels)  # a number that the host knows goes with the call, and is no copy
        self.counts[2:] += torch.stack([each.sum() for each in sums])
        if penalties is not None:
            self.penalties += penalties * len(labels)
        return right

    def compute(self) -> Score:
        """Return what has been taken in since the last reset."""
        loss, counts, penalties = self.loss.clone(), self.counts.clone(), self.penalties.clone()
        if distributed.is_initialized():
            for each in (loss, counts, penalties)[: 3 if len(penalties) else 2]:
                distributed.all_reduce(each)
        by_class = self.by_class.clone()
        if distributed.is_initialized() and by_class.numel():
            distributed.all_reduce(by_class)
        images, several, right, labels, found, top = counts.tolist()
        score = Score(float(loss) / images, images - right, images)
        if by_class.sum():
            there, found_right = by_class[:, by_class[0] > 0].cpu().double()  # Apple's GPUs have no float64
            score = score._replace(mean_class_accuracy=float((found_right / there).mean()))
        score = score._replace(penalties=tuple((penalties / images).tolist()))
        if several:
            return score._replace(label_accuracy=found / labels, xnodr_top2=top / images)
        return score._replace(top5_accuracy=top / images) if self.classes > TOP else score

    def reset(self) -> None:
        self.loss.zero_()
        self.counts.zero_()
        self.penalties.zero_()
        self.by_class.zero_()

    def state(self) -> dict[str, Tensor]:
        """Return the sums of each process, [processes, ...]: added up, what `load` continues would end with other
        bits.
        """
        sums = {"loss": self.loss.clone(), "counts": self.counts.clone()}
        if len(self.penalties):
            sums["penalties"] = self.penalties.clone()
        if not distributed.is_initialized():
            return {key: value[None] for key, value in sums.items()}
        rows = {
            key: [torch.empty_like(value) for _ in range(distributed.get_world_size())] for key, value in sums.items()
        }
        for key, value in sums.items():
            distributed.all_gather(rows[key], value)
        return {key: torch.stack(values) for key, values in rows.items()}

    def load(self, state: dict[str, Tensor], rank: int = 0) -> None:
        """Go on from what `state` returned, as the process `rank`."""
        self.loss.copy_(state["loss"][rank])
        self.counts.copy_(state["counts"][rank])
        if len(self.penalties):
            self.penalties.copy_(state["penalties"][rank])
