"""What is ahead of a run: steps, images, minutes by a few measured steps at the real batch size, and memory."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from torchcaps.config import Config
from torchcaps.data.facts import data_facts
from torchcaps.tables.arguments import model_arguments
from torchcaps.tables.measure import peak_memory, reset_peak, step_seconds
from torchcaps.terminal import show_time

FORWARD = 1 / 3  # of a training step, what an image costs that is only looked at
WITHOUT = "no estimate of time and memory"
PATIENCE = 5.0  # seconds of measured steps, after two of them


class Ahead(NamedTuple):
    """What a run will take; times and memory are None where they could not be measured."""

    epochs: int
    steps: int  # of an epoch
    batch: int
    held: int  # images that each epoch is validated on
    step_seconds: float | None
    memory: float | None  # megabytes that the process holds at most in a step

    @property
    def seconds(self) -> float | None:
        """Return the time of training and validation, without what is loaded before."""
        if self.step_seconds is None:
            return None
        return self.epochs * self.step_seconds * (self.steps + FORWARD * self.held / self.batch)

    def __str__(self) -> str:
        images = self.epochs * self.steps * self.batch
        epochs, steps = (f"{n:,} {name}{'s' * (n != 1)}" for n, name in ((self.epochs, "epoch"), (self.steps, "step")))
        said = f"{epochs} of {steps} of {self.batch} images, {images:,} in all"
        if self.seconds is None or self.step_seconds is None or self.memory is None:
            return f"{said}; {WITHOUT}"
        step = f"{1000 * self.step_seconds:.3g} ms" if self.step_seconds < 1 else f"{self.step_seconds:.3g} s"
        return f"{said}; about {show_time(self.seconds)} at {step} a step, {self.memory:,.0f} MB in one"


def count_ahead(config: Config) -> Ahead:
    """Return what a run of `config` will do, by counting alone; raises as `data_facts`."""
    facts = data_facts(config.data)
    held, used = facts.held, facts.images
    if held is None:
        held = round(config.data.validation * used)
        used = round(config.data.fraction * (used - held))
    return Ahead(config.epochs, used // config.batch_size, config.batch_size, held, None, None)


def look_ahead(config: Config) -> Ahead:
    """Return what a run of `config` will take here: a few of its steps are measured, on noise, in this process.

    They are not compiled. Of several processes one is measured, with its share of the batch.

    Raises:
        FileNotFoundError, ValueError: for data that are not there, and values that no run can have.
    """
    import torch

    from torchcaps.tables.network import build_meta
    from torchcaps.train.check import check_config
    from torchcaps.train.devices import choose_device
    from torchcaps.train.memory import check_memory
    from torchcaps.train.stages import check_stages

    check_config(config)
    counted = count_ahead(config)
    if not counted.steps:
        raise ValueError(f"batch_size {config.batch_size} exceeds the images to train on: there would be no batch")
    device = choose_device(config.device, config.processes)
    shape = model_arguments(config)
    side = shape["image_size"]
    check_memory(shape | {"image_size": (side, side) if isinstance(side, int) else side}, config, torch.device(device))
    bare = {name: value for name, value in config.model.options.items() if name != "pretrained"}
    measured = replace(config, model=replace(config.model, options=bare))
    check_stages(build_meta(config), config)
    reset_peak(device)
    seconds = step_seconds(measured, max(1, config.batch_size // config.processes), device, PATIENCE)
    return counted._replace(step_seconds=seconds, memory=peak_memory(device) / 1e6)
