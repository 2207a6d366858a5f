"""A model small enough to train in a test: one convolution, a coefficient, a decoder that no loss uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchcaps.config import Config, DataConfig, ModelConfig, OptimiserConfig
from torchcaps.models import Model, Output, register_model


class Tiny(Model):
    def __init__(self, num_classes: int, in_channels: int, width: int, norm: bool, dropout: float, coefficient: bool):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, stride=2)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.LazyLinear(num_classes)
        self.scale = nn.Parameter(torch.ones(num_classes), requires_grad=coefficient)
        self.decoder = nn.Linear(num_classes, 3)

    def coefficients(self) -> list[nn.Parameter]:
        return [self.scale] if self.scale.requires_grad else []

    def objective(self, output: Output, targets: Tensor, batch: int | None = None) -> Tensor:
        return (output.scores * targets).sum(1).mean() - self.scale.square().mean()

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        features = self.dropout(torch.relu(self.norm(self.conv(images)))).flatten(1)
        scores = torch.sigmoid(self.head(features)) * self.scale  # [b, classes]
        return Output(scores, (), {"decoded": self.decoder(scores)})


@register_model("tiny")
def tiny(
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    width: int = 4,
    norm: bool = False,
    dropout: float = 0.0,
    coefficient: bool = True,
) -> Tiny:
    model = Tiny(num_classes, in_channels, width, norm, dropout, coefficient)
    with torch.no_grad():
        model.eval()(torch.zeros(1, in_channels, *image_size))
    return model


def tiny_config(out: Path, options: dict[str, Any] | None = None, **changes: Any) -> Config:
    """A run of two epochs of 5 steps on the digits, in float32 on the CPU."""
    values: dict[str, Any] = {
        "recipe": "tiny",
        "model": ModelConfig("tiny", options or {}),
        "data": DataConfig("digits", validation=0.1),
        "optimiser": OptimiserConfig("adam", lr=3e-3),
        "epochs": 2,
        "batch_size": 256,
        "precision": "fp32",
        "device": "cpu",
        "out": out,
    }
    return Config(**(values | changes))
