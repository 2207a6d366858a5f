"""One training step is its phases in turn: the weights, then what a routing learns by an objective of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from torchcaps.config import Config
from torchcaps.data.overlap import Parts
from torchcaps.losses import Criterion, added_penalty, build_criterion
from torchcaps.models import Model, Output
from torchcaps.routing.coefficients import follow_steps, warn_of_collapse
from torchcaps.train.optim import build_optimiser, list_gains


class Phase(NamedTuple):
    """Parameters, and the loss that they, and no others, descend."""

    name: str
    parameters: list[nn.Parameter]
    loss: Criterion
    optimizer: Optimizer
    steps: int  # optimiser steps on each batch, each with a forward of its own
    lr: float  # of the optimiser at the peak of the schedule
    reuse: bool = False  # whether its one step takes the gradient of the first phase's forward instead
    added: Callable[[Output, float], Tensor | None] = lambda output, progress: None  # the model's part of the loss


class Batch(NamedTuple):
    images: Tensor  # [b, c, h, w]
    labels: Tensor  # int64 [b]
    targets: Tensor  # [b, classes] of 0 and 1
    progress: float = 1.0  # of the run, in [0, 1]
    parts: Parts | None = None  # what overlapped images are made of, where their parts are to be reconstructed


def build_phases(model: Model, config: Config, class_weights: Tensor | None = None) -> list[Phase]:
    """Return the phases of `model`: its weights by the criterion and, only where it has them, its coefficients by
    ascent.

    `class_weights` are those of the criterion, see `build_criterion`.

    Raises:
        ValueError: for a penalty's weight, or its warm-up, where the model adds none; for coefficients in fp16.
    """
    _check_penalty(model, config)
    coefficients = model.coefficients()
    if coefficients and config.precision == "fp16":
        raise ValueError(
            f"precision is 'fp16', but {config.model.name} learns coefficients by gradients of their own, which are "
            "not scaled as those of the loss are: take bf16 or fp32"
        )
    apart = {id(parameter) for parameter in coefficients}
    weights = [p for p in model.parameters() if p.requires_grad and id(p) not in apart]
    steps = config.coefficients.weight_steps if coefficients else 1
    criterion = build_criterion(config.loss, class_weights)
    optimiser = build_optimiser(weights, config.optimiser, list_gains(model))
    first = Phase("weights", weights, criterion, optimiser, steps, config.optimiser.lr)
    phases = [first._replace(added=partial(added_penalty, config.loss))]
    if coefficients:
        ascent = SGD(coefficients, lr=config.coefficients.lr)
        follow_steps(ascent, model.modules(), config.batch_size)
        warn_of_collapse(ascent, dict(model.named_modules()))
        phases.append(
            Phase(
                "coefficients",
                coefficients,
                lambda output, images, targets, progress=1.0: -model.objective(output, targets, config.batch_size),
                ascent,
                config.coefficients.steps,
                config.coefficients.lr,
                config.coefficients.reuse_votes,
            )
        )
    return phases


def follow_schedule(phases: Sequence[Phase]) -> None:
    """Give each later phase the share of its largest rate that the first one, which is scheduled, has of its own."""
    weights, *later = phases
    share = weights.optimizer.param_groups[0]["lr"] / weights.lr
    for phase in later:
        for group in phase.optimizer.param_groups:
            group["lr"] = phase.lr * share


def _check_penalty(model: Model, config: Config) -> None:
    for name in ("penalty", "penalty_warmup"):
        value = getattr(config.loss, name)
        if value not in (None, 0.0) and not model.penalties:
            raise ValueError(
                f"loss.{name} is {value}, but {config.model.name} adds no penalty to its loss: leave it out, or take a "
                "network that does, such as one whose name ends in -feedback"
            )


class LossModule(nn.Module):
    """A model and its losses, of a phase and of `later` ones that reuse its forward, as one module for Fabric to wrap.

    DDP must see in an output exactly what gradients come back from: the loss, and not, say, a reconstruction that the
    loss leaves out. So what a later phase takes of the same forward is its gradient, computed here, where DDP does not
    see it. Fabric casts what goes in to the precision of the run, and the loss to float32.
    """

    def __init__(self, model: Model, phase: Phase, *later: Phase):
        super().__init__()
        self.model, self.loss, self.added = model, phase.loss, phase.added
        self.beside = [each for each in later if each.reuse]

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        targets: Tensor,
        progress: float = 1.0,
        parts: Parts | None = None,
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor, ...]], Tensor]:
        """Return the loss, a scalar, and what carries no gradient: scores [b, classes], the gradients of later
        phases, and the penalties, see `Taken`.

        With `parts` each class that an image shows is decoded, and compared with its own part.
        """
        output = self.model(images, labels if parts is None else parts.labels)
        shown = images if parts is None else parts.pixels
        gradients = [
            torch.autograd.grad(each.loss(output, shown, targets, progress), each.parameters, retain_graph=True)
            for each in self.beside
        ]
        loss = self.loss(output, shown, targets, progress)
        return loss, output.scores.detach(), gradients, self._penalties(output, progress)

    def _penalties(self, output: Output, progress: float) -> Tensor:
        added = self.added(output, progress)
        if added is None or not self.model.penalties:
            return output.scores.new_zeros(0)
        return torch.cat([added.reshape(1), output.aux["penalties"]]).detach()


class Taken(NamedTuple):
    """What a weight step saw, detached."""

    loss: Tensor  # scalar
    scores: Tensor  # [b, classes]
    penalties: Tensor  # [1 + n]: what the model added to the loss, and each of its `penalties`; [0] where it has none


def step_phases(
    fabric: Fabric,
    model: Model,
    wrapped: nn.Module,
    optimizer: Optimizer,
    phases: Sequence[Phase],
    batch: Batch,
    clip: float | None,
) -> Taken:
    """Take all phases on a batch; returns what the last weight step saw.

    Args:
        fabric: averages gradients over the processes and scales the loss where the precision needs it.
        model: the module that the phases were built for.
        wrapped: its `LossModule` as `fabric.setup` returned it.
        optimizer: that of the first phase, as `fabric.setup` returned it.
        phases: as `build_phases` returned them.
        batch: this process's share of the batch.
        clip: largest norm of the gradient of a phase; None does not clip.
    """
    weights, *later = phases
    beside = [phase for phase in later if phase.reuse]
    taken = step_weights(fabric, wrapped, optimizer, batch, clip, beside)
    for _ in range(weights.steps - 1):
        taken = step_weights(fabric, wrapped, optimizer, batch, clip)
    for phase in later:
        if not phase.reuse:
            step_apart(fabric, model, phase, batch, clip)
    return taken


def step_weights(
    fabric: Fabric,
    wrapped: nn.Module,
    optimizer: Optimizer,
    batch: Batch,
    clip: float | None,
    beside: Sequence[Phase] = (),
) -> Taken:
    """Return one step of the first phase, through Fabric's module and optimiser, and of those `beside`, by the same
    forward.

    The arguments are those of `step_phases`.
    """
    wrapped.zero_grad(set_to_none=True)
    loss, scores, gradients, penalties = wrapped(*batch)
    fabric.backward(loss)
    if clip is not None:
        fabric.clip_gradients(wrapped, optimizer, max_norm=clip, error_if_nonfinite=False)
    optimizer.step()
    for phase, each in zip(beside, gradients, strict=True):
        _descend(fabric, phase, each, clip)
    return Taken(loss.detach(), scores, penalties)


def step_apart(fabric: Fabric, model: Model, phase: Phase, batch: Batch, clip: float | None) -> None:
    """Take the steps of a later phase, through the inner `model`: DDP's reducer waits for every weight, and must not
    see it.

    Gradients are taken of the phase's parameters only and averaged over the processes; `.grad` is left None.
    """
    for _ in range(phase.steps):
        with fabric.autocast():
            output = model(batch.images, batch.labels)
        loss = phase.loss(output, batch.images, batch.targets, batch.progress)
        _descend(fabric, phase, torch.autograd.grad(loss, phase.parameters), clip)


def _descend(fabric: Fabric, phase: Phase, gradients: Sequence[Tensor], clip: float | None) -> None:
    """Take one optimiser step of a later phase by this process's gradients, in place of whatever `.grad` held."""
    for parameter, gradient in zip(phase.parameters, gradients, strict=True):
        parameter.grad = fabric.all_reduce(gradient, reduce_op="mean")  # pyright: ignore[reportAttributeAccessIssue]
    if clip is not None:
        nn.utils.clip_grad_norm_(phase.parameters, clip)
    phase.optimizer.step()
    phase.optimizer.zero_grad(set_to_none=True)
