"""Decoders: from the pose of one class capsule back to the image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def chosen_class(scores: Tensor, labels: Tensor | None) -> Tensor:
    """The class to reconstruct from, int64 [b]: the label where it is given, else the highest score [b, j].

    Of label sets [b, j] of 0 and 1 it is the one among them with the highest score.
    """
    if labels is None:
        return scores.argmax(1)
    return labels if labels.ndim == 1 else scores.masked_fill(labels == 0, -torch.inf).argmax(1)


class DenseDecoder(nn.Module):
    """Three dense layers with a sigmoid at the end (Sabour et al. 2017, figure 2).

    All class capsules but the chosen one are set to zero, so the first layer knows the class by its place.

    Args:
        classes, pose: number of class capsules and elements of each.
        image: (channels, height, width) of the image.
        hidden: widths of the two hidden layers.
    """

    def __init__(self, classes: int, pose: int, image: tuple[int, int, int], hidden: tuple[int, int] = (512, 1024)):
        super().__init__()
        self.classes, self.image = classes, image
        self.layers = nn.Sequential(
            nn.Linear(classes * pose, hidden[0]),
            nn.ReLU(),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(),
            nn.Linear(hidden[1], math.prod(image)),
        )

    def forward(self, poses: Tensor, chosen: Tensor) -> Tensor:
        """Poses [b, j, d] and the class to decode, int64 [b] -> images [b, c, h, w] in [0, 1]."""
        mask = F.one_hot(chosen, self.classes).to(poses.dtype).unsqueeze(-1)  # [b, j, 1]
        return torch.sigmoid(self.layers((poses * mask).flatten(1))).unflatten(1, self.image)
