"""Optimisers and learning rate schedules, as a `Config` names them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, MultiStepLR, OneCycleLR, StepLR

from torchcaps.config import OptimiserConfig, ScheduleConfig
from torchcaps.votes.normalised import VoteNorm

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, VoteNorm)


def list_gains(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield gains of normalisations, and biases: no kernels, whatever their shape.

    They may have as many dimensions as what they belong to, as in a batch norm of votes by child and parent.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, _NORMS) or name == "bias":
                yield parameter


def build_optimiser(
    weights: Iterable[nn.Parameter], config: OptimiserConfig, gains: Iterable[nn.Parameter] = ()
) -> Optimizer:
    """Return the optimiser that `config` names, over `weights`, among which `gains` are no kernels.

    On a CPU a step is one pass over each parameter where torch has it so. Elsewhere torch chooses, since such a step
    takes the scale of fp16 out by itself, and leaves no room to clip gradients.
    """
    lr, decay, eps, parameters = config.lr, config.weight_decay, config.eps, list(weights)
    fused = all(parameter.is_cpu for parameter in parameters) or None
    if config.decay == "kernels":
        spared = {id(parameter) for parameter in gains}
        kernels = [parameter for parameter in parameters if parameter.ndim >= 2 and id(parameter) not in spared]
        others = [parameter for parameter in parameters if parameter.ndim < 2 or id(parameter) in spared]
        parameters = [{"params": kernels}, {"params": others, "weight_decay": 0.0}]
    match config.name:
        case "adam":
            return torch.optim.Adam(parameters, lr, eps=eps, weight_decay=decay, fused=fused)
        case "adamw":
            return torch.optim.AdamW(parameters, lr, eps=eps, weight_decay=decay, fused=fused)
        case "sgd":
            return torch.optim.SGD(
                parameters, lr, config.momentum, weight_decay=decay, nesterov=config.nesterov, fused=fused
            )
        case "rmsprop":
            return torch.optim.RMSprop(parameters, lr, eps=eps, momentum=config.momentum, weight_decay=decay)


def triangular2(step: int, step_size: int, floor: float, halves: Literal["peaks", "dips"] = "peaks") -> float:
    """Return Smith 2017's triangular2 policy, begun at the largest rate, as a factor in [floor, 1] of it.

    It falls to `floor` over `step_size` steps. "peaks": from there each cycle of 2 * `step_size` steps rises and falls
    again, and each has half the amplitude of the one before: what all cycles share is `floor`, and the first is entered
    at its peak. "dips": what they share is the largest rate, from which each cycle falls half as far as the one before.
    """
    cycle, position = divmod(step + step_size * (halves == "peaks"), 2 * step_size)
    away = (1 - floor) * (1 - abs(position / step_size - 1)) / 2**cycle  # from what all cycles share
    return floor + away if halves == "peaks" else 1 - away


def follow_on(schedule: LRScheduler, rates: Sequence[float], steps: int) -> None:
    """Move a fresh `schedule`, whose optimiser began with `rates`, to where it stands after `steps` batches."""
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the optimiser has taken no step, which another one took
        for _ in range(steps):
            schedule.step()


def build_schedule(optimizer: Optimizer, config: ScheduleConfig, epoch_steps: int, epochs: int) -> LRScheduler:
    """Return the schedule that `config` names, to be stepped after each batch, however many steps an optimiser takes
    on it.

    A run has `epoch_steps * epochs` batches: the iterations of a paper, and the steps that a schedule counts.

    The learning rate that `optimizer` has is the largest of the run.

    Raises:
        ValueError: for a `step_size` below 1, a `warmup` outside (0, 1), or a smallest rate above the largest.
    """
    steps = epochs * epoch_steps
    lr = optimizer.param_groups[0]["lr"]
    if config.step_size < 1:
        raise ValueError(f"schedule.step_size is {config.step_size}; it must be at least 1 batch")
    if not 0 < config.warmup < 1:
        raise ValueError(f"schedule.warmup is {config.warmup}; it is a share of the run, above 0 and below 1")
    if config.lr_min > lr:
        raise ValueError(f"schedule.lr_min is {config.lr_min}, above optimiser.lr {lr}")
    match config.name:
        case "constant":
            return LambdaLR(optimizer, lambda step: 1.0)
        case "step":
            return MultiStepLR(optimizer, [epoch * epoch_steps for epoch in config.milestones], config.gamma)
        case "cosine":
            return CosineAnnealingLR(optimizer, max(steps, 1), config.lr_min)
        case "one-cycle":
            whole = abs(config.warmup * steps - 1) < 1e-6  # step to rise in: torch divides by one fewer
            rising = config.warmup * (1.001 if whole else 1)
            return OneCycleLR(optimizer, lr, max(steps, 1), pct_start=rising, cycle_momentum=False)
        case "triangular2":
            low, halves = config.lr_min / lr, config.halves
            return LambdaLR(optimizer, lambda step: triangular2(step, config.step_size, low, halves))
        case "exponential" if config.continuous:
            return LambdaLR(optimizer, lambda step: max(config.gamma ** (step / config.step_size), config.lr_min / lr))
        case "exponential" if config.lr_min:
            return LambdaLR(optimizer, lambda step: max(config.gamma ** (step // config.step_size), config.lr_min / lr))
        case "exponential":
            return StepLR(optimizer, config.step_size, config.gamma)
