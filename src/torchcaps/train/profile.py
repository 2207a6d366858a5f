"""Where a training step's time goes: shares of convolutions, norms, capsules, the rest, loss, optimiser and data.

A step is taken under torch's profiler. Operations of the forward pass belong to the kind of module that called them,
and what backward computes to the operation that it is the gradient of, which autograd numbers alike. Everything inside
a stack or layer of capsules is "capsules", its norms too. What no operation accounts for, Python's own time, is
"between".
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler import record_function
from torch.nn.utils import convert_conv2d_weight_memory_format

from torchcaps.config import AugmentConfig, Config
from torchcaps.data.batches import Batches
from torchcaps.data.images import Images
from torchcaps.layers import CapsuleLayer, CapsuleStack
from torchcaps.losses import multi_hot
from torchcaps.memory import kept
from torchcaps.models import Model
from torchcaps.train.phases import Batch, LossModule, build_phases, step_phases
from torchcaps.train.processes import build_fabric

SHARES = ("convolutions", "norms", "capsules", "rest", "loss", "optimiser", "between", "data")
MARK = "torchcaps.share:"  # before the name of a share, in the ranges that modules are
BACKWARD = "autograd::engine::evaluate_function"
OPTIMISER = "Optimizer."
EPOCH = 4  # batches that data are drawn from
KINDS: tuple[tuple[str, tuple[type[nn.Module], ...]], ...] = (
    ("capsules", (CapsuleStack, CapsuleLayer)),
    ("convolutions", (nn.modules.conv._ConvNd,)),
    ("norms", (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)),
)


@kept("cpu")
def profile_step(
    model: Model,
    config: Config,
    image: tuple[int, int, int],
    classes: int,
    *,
    augment: AugmentConfig | None = None,
    repeats: int = 3,
) -> dict[str, float]:
    """Return seconds of a training step on a CPU by share, in the order of `SHARES`: medians over steps.

    The batch is noise, with labels at random. The profiler takes time of its own, up to some microseconds for each
    operation, which falls on the shares of many small ones and on "between".

    Args:
        model: it is trained for some steps.
        config: loss, optimiser, batch size and precision; the rest of it is not looked at.
        image: channels, height and width.
        classes: of the labels.
        augment: changes of the images; None: shifts by up to 2 pixels.
        repeats: steps that are looked at, after one that is not.
    """
    config = replace(config, device="cpu", processes=1)
    model = convert_conv2d_weight_memory_format(model, torch.channels_last).train()
    fabric, phases = build_fabric(config), build_phases(model, config)
    wrapped, optimizer = fabric.setup(LossModule(model, *phases), phases[0].optimizer)
    size, drawn = config.batch_size, torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (EPOCH * size, *image), dtype=torch.uint8, generator=drawn)
    labels = torch.randint(classes, (EPOCH * size,), generator=drawn)
    names = tuple(map(str, range(classes)))
    changes = AugmentConfig(shift=2) if augment is None else augment
    batches = Batches(Images(pixels, labels, names), size, augment=changes, standardise="image", shuffle=True)
    found: list[dict[str, float]] = []
    for turn in range(repeats + 1):
        begun = time.perf_counter()
        images, labels = next(batches.epoch(turn))
        images = images.contiguous(memory_format=torch.channels_last)
        batch = Batch(images, labels, multi_hot(labels, classes))
        data = time.perf_counter() - begun
        with _marks(model), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            begun = time.perf_counter()
            step_phases(fabric, model, wrapped, optimizer, phases, batch, config.clip)
            seconds = time.perf_counter() - begun
        taken = _shares(profile.events() or [])
        taken["between"] = max(0.0, seconds - sum(taken.values()))
        found.append(taken | {"data": data})
    return {share: median(each.get(share, 0.0) for each in found[1:]) for share in SHARES}


@contextmanager
def _marks(model: nn.Module) -> Iterator[None]:
    """Have each module of a kind, and the model as a whole, be a range of the profile that bears the share's name."""
    with ExitStack() as stack:
        for module in model.modules():
            share = "rest" if module is model else _share_of(module)
            if share is None:
                continue
            ranges: list[Any] = []

            def enter(_module: nn.Module, _inputs: object, share: str = share, ranges: list[Any] = ranges) -> None:
                ranges.append(record_function(MARK + share))
                ranges[-1].__enter__()

            def leave(_module: nn.Module, _inputs: object, _output: object, ranges: list[Any] = ranges) -> None:
                ranges.pop().__exit__(None, None, None)

            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        yield


def _share_of(module: nn.Module) -> str | None:
    return next((share for share, kinds in KINDS if isinstance(module, kinds)), None)


def _shares(events: Sequence[Any]) -> dict[str, float]:
    """Return seconds by share of the events of a profile: of each the outermost that belongs to one share."""
    taken: dict[str, float] = {}
    by_number: dict[int, str] = {}  # the share of a forward operation, by the number that its gradient bears too
    for event in sorted(events, key=lambda each: each.time_range.start):
        if _outer(event, BACKWARD) is None and event.sequence_nr >= 0:
            by_number.setdefault(event.sequence_nr, _forward_share(event))
    for event in events:
        parent = event.cpu_parent
        if event.name.startswith(BACKWARD):
            if _outer(event, BACKWARD) is None:
                _add(taken, by_number.get(event.sequence_nr, "rest"), event)
        elif event.name.startswith(OPTIMISER):
            if _outer(event, OPTIMISER) is None:
                _add(taken, "optimiser", event)
        elif not event.name.startswith(MARK) and (parent is None or parent.name.startswith(MARK)):
            _add(taken, _forward_share(event), event)  # an operation that no other operation called
    return taken


def _add(taken: dict[str, float], share: str, event: Any) -> None:
    taken[share] = taken.get(share, 0.0) + event.time_range.elapsed_us() / 1e6


def _outer(event: Any, name: str) -> Any:
    """Return the nearest event around one whose name begins with `name`; None where there is none."""
    event = event.cpu_parent
    while event is not None and not event.name.startswith(name):
        event = event.cpu_parent
    return event


def _forward_share(event: Any) -> str:
    """Return the share of an operation by the ranges around it: capsules where one of them is, else the innermost."""
    around = []
    while (event := _outer(event, MARK)) is not None:
        around.append(event.name.removeprefix(MARK))
    return "capsules" if "capsules" in around else around[0] if around else "loss"
