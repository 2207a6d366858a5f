"""The training of one model, from a `Config` to a `Result` and the folder of the run.

Batches are a pure function of (seed, epoch, step), and each step draws its random numbers from a generator seeded by
(seed, step, rank). So a run is continued from its weights, optimisers and position alone, by the same operations in the
same order as if it had never stopped.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.nn.utils import convert_conv2d_weight_memory_format

from torchcaps.config import Config
from torchcaps.data import load_data
from torchcaps.losses import multi_hot
from torchcaps.models import create_model
from torchcaps.train.checkpoint import load_state, load_weights, present, save_checkpoint
from torchcaps.train.display import Display
from torchcaps.train.evaluate import evaluate
from torchcaps.train.machine import build_fabric, describe_environment, launch
from torchcaps.train.meter import Meter, Score
from torchcaps.train.optim import build_schedule
from torchcaps.train.phases import Batch, LossModule, build_phases, step_apart, step_weights
from torchcaps.train.run import Result, RunFolder, create_run, find_unfinished

CLOCK_STEPS = 10  # steps between looks at the clock where several processes must agree on what it says


@dataclass
class Position:
    """Where a run stands: what a checkpoint holds beside the states of modules and optimisers."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the epoch that has begun
    epoch_seconds: float = 0.0  # spent on these steps
    seconds: float = 0.0  # spent on the finished epochs
    selected_epoch: int = 0  # counted from 1
    selected_accuracy: float | None = None  # on the validation split
    selected_loss: float = math.inf  # the same; it decides between epochs of equal accuracy
    history: list[dict] = field(default_factory=list)  # the lines of metrics.jsonl


def fit(config: Config, resume: bool = False) -> Result:
    """Train, select on the validation split, and measure the selected weights once on the test split.

    Args:
        config: all that determines the run.
        resume: continue the newest unfinished run of this config, and end as if it had never stopped.

    Raises:
        ValueError: for values that contradict each other, the data or the machine; when there is nothing to resume.
        FloatingPointError: when the loss is no longer finite.
    """
    if config.epochs < 1:
        raise ValueError(f"epochs is {config.epochs}; it must be at least 1")
    if config.loss.reconstruction and config.data.standardise != "none":
        raise ValueError(
            f"data.standardise is {config.data.standardise!r}, but a reconstruction (loss.reconstruction "
            f"{config.loss.reconstruction}) predicts pixels in [0, 1]: set it to none"
        )
    return launch(build_fabric(config), partial(_train, config=config, resume=resume))


def _train(fabric: Fabric, config: Config, resume: bool) -> Result:
    return Trainer(fabric, config, resume).run()


class Trainer:
    """One process's part in a run."""

    def __init__(self, fabric: Fabric, config: Config, resume: bool):
        self.fabric, self.config = fabric, config
        with fabric.rank_zero_first():
            self.data = load_data(config.data, fabric.device)
        self.batches = self.data.training(
            config.data, config.batch_size, config.seed, fabric.global_rank, fabric.world_size
        )
        shape = {
            "name": config.model.name,
            "num_classes": self.data.num_classes,
            "in_channels": self.data.channels,
            "image_size": self.data.image_size,
            **config.model.options,
        }
        fabric.seed_everything(config.seed, verbose=False)
        self.model = convert_conv2d_weight_memory_format(create_model(**shape), torch.channels_last)
        fabric.to_device(self.model)
        self.phases = build_phases(self.model, config)
        self.schedule = build_schedule(self.phases[0].optimizer, config.schedule, len(self.batches), config.epochs)
        weights = self.phases[0]
        self.wrapped, self.optimizer = fabric.setup(LossModule(self.model, weights), weights.optimizer)
        self.meter = Meter(self.data.num_classes, fabric.device)
        self.position = Position()
        self.folder = self._open(resume, shape)
        if resume and present(self.folder.last):
            self.load()
        self.clock = self.saved = time.monotonic()

    def _open(self, resume: bool, shape: dict) -> RunFolder:
        """The folder of the run, the same one in all processes; only the first process writes to it."""
        if not self.fabric.is_global_zero:
            return self.fabric.broadcast(RunFolder(self.config.out))
        folder = find_unfinished(self.config) if resume else create_run(self.config)
        folder.write("model.json", shape)
        folder.write("environment.json", describe_environment(self.fabric))
        return self.fabric.broadcast(folder)

    def run(self) -> Result:
        """Train to the end, then test the selected weights."""
        position, epochs = self.position, self.config.epochs
        with Display(epochs, len(self.batches), self.fabric.is_global_zero) as display:
            while position.epoch < epochs:
                self.train_epoch(display)
                self.end_epoch(display)
        self.fabric.barrier()
        load_weights(self.folder.best, self.model)
        test = self.evaluate("test")
        result = Result(
            test_accuracy=test.accuracy,
            test_errors=test.errors,
            test_images=test.images,
            validation_accuracy=position.selected_accuracy,
            selected_epoch=position.selected_epoch,
            parameters=sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            seconds=position.seconds,
            folder=self.folder.path,
        )
        if self.fabric.is_global_zero:
            self.folder.write_result(result)
        return result

    def train_epoch(self, display: Display) -> None:
        """The steps that remain of the epoch.

        What a step returned is read one step later, when the device is done with it: it need not be waited for.
        """
        position, steps = self.position, len(self.batches)
        self.model.train()
        display.start_epoch(position.epoch)
        pending = None
        for images, labels in self.batches.epoch(position.epoch, start=position.step):
            values = self.step(images, labels)
            if pending is not None:
                self.report(display, *pending)
            position.step += 1
            pending = position.epoch * steps + position.step, values
            if position.step < steps and self._checkpoint_due():
                self.report(display, *pending)
                pending = None
                self.save()
        if pending is not None:
            self.report(display, *pending)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """All phases on this process's share of a batch; returns its loss and its accuracy as [2], on the device."""
        done = self.position.epoch * len(self.batches) + self.position.step
        draws = np.random.SeedSequence((self.config.seed, done, self.fabric.global_rank))
        torch.manual_seed(int(draws.generate_state(1)[0]))
        images = images.contiguous(memory_format=torch.channels_last)
        batch = Batch(images, labels, multi_hot(labels, self.data.num_classes))
        loss, scores = step_weights(self.fabric, self.wrapped, self.optimizer, batch, self.config.clip)
        for phase in self.phases[1:]:
            step_apart(self.fabric, self.model, phase, batch, self.config.clip)
        self.schedule.step()
        self.meter.update(loss, scores, labels)
        return torch.stack([loss, (scores.argmax(1) == labels).float().mean()])

    def report(self, display: Display, step: int, values: Tensor) -> None:
        """Show what `step`, counted from 1 over the run, returned.

        Raises:
            FloatingPointError: when its loss is not finite.
        """
        loss, accuracy = values.tolist()
        if not math.isfinite(loss):
            epoch = self.position.epoch + 1
            raise FloatingPointError(
                f"the loss is {loss} at step {step} (epoch {epoch}): a smaller optimiser.lr, clip, or precision fp32 "
                "may keep it finite"
            )
        self._tick()
        done = self.position.step * self.config.batch_size
        display.step(step, loss, accuracy, done / self.position.epoch_seconds)

    def end_epoch(self, display: Display) -> None:
        """Validate, keep the weights if they are the best so far, record the epoch, and write a checkpoint."""
        position, steps = self.position, len(self.batches)
        train = self.meter.compute()
        self._tick()
        training_seconds = position.epoch_seconds
        if self.fabric.world_size > 1:  # each process has its own batch statistics; those of the first are kept
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)
        validation = self.evaluate("validation") if len(self.data.validation) else None
        self._tick()
        position.history.append(
            {
                "epoch": position.epoch + 1,
                "step": (position.epoch + 1) * steps,
                "train_loss": train.loss,
                "train_accuracy": train.accuracy,
                "validation_loss": validation.loss if validation else None,
                "validation_accuracy": validation.accuracy if validation else None,
                "lr": self.schedule.get_last_lr()[0],
                "seconds": position.epoch_seconds,
                "images_per_second": steps * self.config.batch_size / training_seconds,
            }
        )
        position.epoch += 1
        position.step = 0
        position.seconds += position.epoch_seconds
        position.epoch_seconds = 0.0
        self.meter.reset()
        best = position.selected_accuracy, -position.selected_loss
        if validation is None or best[0] is None or (validation.accuracy, -validation.loss) > best:
            position.selected_epoch = position.epoch
            if validation is not None:
                position.selected_accuracy, position.selected_loss = validation.accuracy, validation.loss
            if self.fabric.is_global_zero:
                save_checkpoint(self.folder.best, self.model)
        if self.fabric.is_global_zero:
            self.folder.write_metrics(position.history)
        self.save()
        display.end_epoch(position.history[-1])

    def evaluate(self, split: Literal["validation", "test"]) -> Score:
        fabric = self.fabric
        batches = self.data.evaluation(split, self.config.batch_size, fabric.global_rank, fabric.world_size)
        return evaluate(fabric, self.model, batches, self.phases[0].loss, self.data.num_classes)

    def save(self) -> None:
        """Write the checkpoint that `load` reads; all processes call it, the first one writes."""
        state = {
            "position": asdict(self.position),
            "optimizers": [phase.optimizer.state_dict() for phase in self.phases],
            "schedule": self.schedule.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "meter": self.meter.state(),
        }
        if self.fabric.is_global_zero:
            save_checkpoint(self.folder.last, self.model, state)
        self.saved = time.monotonic()

    def load(self) -> None:
        load_weights(self.folder.last, self.model)
        state = load_state(self.folder.last)
        self.position = Position(**state["position"])
        for phase, values in zip(self.phases, state["optimizers"], strict=True):
            phase.optimizer.load_state_dict(values)
        self.schedule.load_state_dict(state["schedule"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        if self.fabric.is_global_zero:  # the sums are those of all processes
            self.meter.load(state["meter"])

    def _checkpoint_due(self) -> bool:
        if self.fabric.world_size > 1 and self.position.step % CLOCK_STEPS:
            return False
        return self.fabric.broadcast(time.monotonic() - self.saved >= self.config.checkpoint_every)

    def _tick(self) -> None:
        """Add the time since the last call to the epoch's."""
        now = time.monotonic()
        self.position.epoch_seconds += now - self.clock
        self.clock = now
