"""One training step is its phases in turn: the weights, then what a routing learns by an objective of its own."""

from __future__ import annotations

from typing import NamedTuple

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from torchcaps.config import Config
from torchcaps.data.overlap import Parts
from torchcaps.losses import Criterion, build_criterion
from torchcaps.models import Model
from torchcaps.routing.discriminative import shrink_after, warn_of_collapse
from torchcaps.train.optim import build_optimiser


class Phase(NamedTuple):
    """Parameters, and the loss that they, and no others, descend."""

    name: str
    parameters: list[nn.Parameter]
    loss: Criterion
    optimizer: Optimizer
    steps: int  # optimiser steps on each batch, each with a forward of its own


class Batch(NamedTuple):
    images: Tensor  # [b, c, h, w]
    labels: Tensor  # int64 [b]
    targets: Tensor  # [b, classes] of 0 and 1
    progress: float = 1.0  # of the run, in [0, 1]
    parts: Parts | None = None  # what overlapped images are made of, where their parts are to be reconstructed


def build_phases(model: Model, config: Config) -> list[Phase]:
    """The phases of `model`: its weights by the criterion and, only where it has them, its coefficients by ascent."""
    coefficients = model.coefficients()
    apart = {id(parameter) for parameter in coefficients}
    weights = [p for p in model.parameters() if p.requires_grad and id(p) not in apart]
    phases = [
        Phase("weights", weights, build_criterion(config.loss), build_optimiser(weights, config.optimiser), steps=1)
    ]
    if coefficients:
        ascent = SGD(coefficients, lr=config.coefficients.lr)
        shrink_after(ascent, model.modules())
        warn_of_collapse(ascent, dict(model.named_modules()))
        phases.append(
            Phase(
                "coefficients",
                coefficients,
                lambda output, images, targets, progress=1.0: -model.objective(output, targets),
                ascent,
                config.coefficients.steps,
            )
        )
    return phases


class LossModule(nn.Module):
    """A model and its loss as one module, for Fabric to wrap.

    DDP must see in an output exactly what gradients come back from: the loss, and not, say, a reconstruction that the
    loss leaves out. Fabric casts what goes in to the precision of the run, and the loss to float32.
    """

    def __init__(self, model: Model, phase: Phase):
        super().__init__()
        self.model, self.loss = model, phase.loss

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        targets: Tensor,
        progress: float = 1.0,
        parts: Parts | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and the scores [b, classes], which carry no gradient.

        With `parts` each class that an image shows is decoded, and compared with its own part.
        """
        output = self.model(images, labels if parts is None else parts.labels)
        shown = images if parts is None else parts.pixels
        return self.loss(output, shown, targets, progress), output.scores.detach()


def step_weights(
    fabric: Fabric, wrapped: nn.Module, optimizer: Optimizer, batch: Batch, clip: float | None
) -> tuple[Tensor, Tensor]:
    """One step of the first phase, through Fabric's module and optimiser; returns the loss and the scores, detached.

    Args:
        fabric: averages gradients over the processes and scales the loss where the precision needs it.
        wrapped: the `LossModule` as `fabric.setup` returned it.
        optimizer: that of the phase, as `fabric.setup` returned it.
        batch: this process's share of the batch.
        clip: largest norm of the gradient; None does not clip.
    """
    wrapped.zero_grad(set_to_none=True)
    loss, scores = wrapped(*batch)
    fabric.backward(loss)
    if clip is not None:
        fabric.clip_gradients(wrapped, optimizer, max_norm=clip, error_if_nonfinite=False)
    optimizer.step()
    return loss.detach(), scores


def step_apart(fabric: Fabric, model: Model, phase: Phase, batch: Batch, clip: float | None) -> None:
    """The steps of a later phase, through the inner `model`: DDP's reducer waits for every weight, and must not see it.

    Gradients are taken of the phase's parameters only and averaged over the processes; `.grad` is left None.
    """
    for parameter in phase.parameters:
        parameter.grad = None
    for _ in range(phase.steps):
        with fabric.autocast():
            output = model(batch.images, batch.labels)
        loss = phase.loss(output, batch.images, batch.targets, batch.progress)
        gradients = torch.autograd.grad(loss, phase.parameters)
        for parameter, gradient in zip(phase.parameters, gradients, strict=True):
            parameter.grad = fabric.all_reduce(gradient, reduce_op="mean")  # pyright: ignore[reportAttributeAccessIssue]
        if clip is not None:
            nn.utils.clip_grad_norm_(phase.parameters, clip)
        phase.optimizer.step()
        phase.optimizer.zero_grad(set_to_none=True)
