"""Batch norm's statistics for the evaluations of runs that are too short for running ones.

Running statistics move by `momentum` a step: after t steps (1 - momentum)^t of them is what they began with, which is
a third after 100 steps of Keras' 0.01. Networks that have learnt are then at chance in evaluation, and nothing says so.
So below 10 / momentum steps evaluations see a copy of the model whose statistics are measured; training's own stay as
they are, and so do longer runs.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import islice
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from torch import nn

from torchcaps.data import Batches
from torchcaps.votes.normalised import VoteNorm

FORGOTTEN = 10  # steps times the momentum, from which running statistics serve: e^-10 of the beginning is left
IMAGES = 2048  # that the statistics are of, at least
Norm = nn.modules.batchnorm._BatchNorm | VoteNorm
M = TypeVar("M", bound=nn.Module)


def list_norms(model: nn.Module) -> list[Norm]:
    """Return the normalisations of `model` whose running statistics move by a momentum."""
    norms = [each for each in model.modules() if isinstance(each, Norm)]
    return [each for each in norms if each.running_mean is not None and each.momentum]


def count_batches(model: nn.Module, batches: Batches, epochs: int, averaged: bool = False) -> int:
    """Return how many batches the statistics of evaluations are to be measured on in a run of `epochs` of these
    `batches`.

    0 where running ones serve: in a network without batch norm, and from 10 / momentum steps on, by the smallest
    momentum in the network. Else 2,048 images, or all that an epoch has: also where the weights that are evaluated are
    `averaged`, of which the running statistics of training are not those.
    """
    momenta = [each.momentum or 0.0 for each in list_norms(model)]
    if not momenta or (not averaged and epochs * len(batches) * min(momenta) >= FORGOTTEN):
        return 0
    return min(-(-IMAGES // batches.batch_size), len(batches))


@torch.no_grad()
def measure_statistics(
    fabric: Fabric, model: M, batches: Batches, count: int, parts: bool = False, held: str = ""
) -> M:
    """Return a copy of `model`, in evaluation mode, whose batch norms have the plain mean of the statistics of some
    batches.

    The batches are the first `count` joint ones of the first epoch, unchanged by augmentation, so that every call takes
    the same. The first process measures, and all get what it found: the same as one process alone would find.

    Args:
        fabric: of the run; all its processes call this together.
        model: the inner module; it is left as it is.
        batches: of training.
        count: at least 1, see `count_batches`.
        parts: whether overlapped images are decoded part by part, as in training.
        held: name of a part of the model that training leaves as it is, and whose statistics stay.
    """
    measured = copy.deepcopy(model).eval()
    kept = set(measured.get_submodule(held).modules()) if held else set()
    norms = [each for each in list_norms(measured) if each not in kept]
    if not norms:  # all are of the part that is held
        return measured
    if fabric.is_global_zero:
        momenta = [each.momentum or 0.0 for each in norms]
        plain = replace(batches, augment=None, rank=0, world=1)
        for step, (images, labels) in enumerate(islice(plain.epoch(0), count)):
            for each in norms:
                each.train().momentum = 1 / (step + 1)  # so that what is kept is the mean so far
            shown = plain.parts(0, step) if parts else None
            with fabric.autocast():
                measured(
                    images.contiguous(memory_format=torch.channels_last), labels if shown is None else shown.labels
                )
        for each, momentum in zip(norms, momenta, strict=True):
            each.eval().momentum = momentum
    if fabric.world_size > 1:
        for buffer in measured.buffers():
            torch.distributed.broadcast(buffer, 0)
    return measured
