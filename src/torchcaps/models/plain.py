"""Networks without capsules."""

from __future__ import annotations

from torch import Tensor, nn

from torchcaps.config import ScoreKind
from torchcaps.models.registry import Model, Output


class PlainNetwork(Model):
    """Images through `features` [b, c, h, w] and `head` to scores [b, classes], which are logits; without capsules."""

    def __init__(self, features: nn.Module, head: nn.Module):
        super().__init__()
        self.features, self.head = features, head

    @property
    def scores(self) -> ScoreKind:
        return "logit"

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        return Output(self.head(self.features(images)), (), {})


def pool() -> list[nn.Module]:
    """Return modules that take the mean over all positions: [b, c, h, w] -> [b, c]."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
