"""A running mean of the weights of a run, by which it is evaluated and which it keeps."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Average:
    """The exponential mean of the trainable weights of `model` over its steps (Polyak and Juditsky 1992).

    Args:
        model: whose weights they are.
        decay: in (0, 1), what is kept at each step. At step t it is at most (1 + t) / (10 + t), so that the weights of
            the start are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay, self.steps = model, decay, 0
        self._names = [name for name, weight in model.named_parameters() if weight.requires_grad]
        self.weights = [weight.detach().clone() for weight in self._trained(model)]

    def _trained(self, model: nn.Module) -> list[nn.Parameter]:
        """Return those that were trainable when the run began, whether or not they are held now."""
        return [model.get_parameter(name) for name in self._names]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now, after a step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for mean, weight in zip(self.weights, self._trained(self.model), strict=True):
            mean.lerp_(weight, 1 - decay)
        self.steps += 1

    @torch.no_grad()
    def averaged(self, model: M) -> M:
        """Return a copy of `model` with the mean in place of its weights; its buffers are those of training."""
        found = copy.deepcopy(model)
        for weight, mean in zip(self._trained(found), self.weights, strict=True):
            weight.copy_(mean)
        return found

    def state(self) -> dict[str, list[Tensor] | int]:
        """Return what a checkpoint keeps; `load` goes on from it."""
        return {"weights": self.weights, "steps": self.steps}

    def load(self, state: dict) -> None:
        """Go on from what `state` returned."""
        for mine, kept in zip(self.weights, state["weights"], strict=True):
            mine.copy_(kept)
        self.steps = int(state["steps"])
