"""The loop that trains one model: one process's part in a run, from its folder to its `Result`.

Batches are a pure function of (seed, epoch, step), and a step one of the `Learner`, its batch and its number. So a run
is continued from what learns and from its position alone, by the same operations in the same order as if it had never
stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor

from torchcaps.config import Config, to_plain
from torchcaps.forms import SplitName
from torchcaps.manifest import Manifest
from torchcaps.models import Model
from torchcaps.terminal import warn
from torchcaps.train.anomaly import check_weights, find_infinite, spoilt
from torchcaps.train.callbacks import Callback, tell_epoch, tell_record
from torchcaps.train.checkpoint import damaged, load_state, load_weights, present, save_checkpoint
from torchcaps.train.classes import check_classes
from torchcaps.train.describe import make_manifest
from torchcaps.train.display import Display
from torchcaps.train.evaluation import evaluate
from torchcaps.train.given import Given
from torchcaps.train.interrupt import Interrupted, Interruption
from torchcaps.train.learner import Learner
from torchcaps.train.machine import began_otherwise, describe_environment, kept_threads
from torchcaps.train.memory import check_memory
from torchcaps.train.meter import Score
from torchcaps.train.position import Clock, Position
from torchcaps.train.readback import Readback
from torchcaps.train.resuming import check_images, open_folder, runs_of
from torchcaps.train.run import Result, RunFolder
from torchcaps.train.stages import enter_stage

CLOCK_STEPS = 10  # steps between looks at the clock where several processes must agree on what it says


class Trainer:
    """One process's part in a run."""

    def __init__(
        self,
        fabric: Fabric,
        config: Config,
        resume: bool,
        interruption: Interruption | None = None,
        callbacks: Sequence[Callback] = (),
        given: Given = Given(),  # noqa: B008 - it is frozen
    ):
        self.fabric, self.config, self.callbacks = fabric, config, callbacks
        self.interruption = interruption or Interruption()
        with fabric.rank_zero_first():
            self.data = given.load_data(config.data, fabric.device)
            if not len(self.data.test):
                raise ValueError(f"the test split of {config.data.name} is empty: a run ends with measuring it")
        check_classes(config, self.data)
        self.batches = self.data.training(
            config.data, config.batch_size, config.seed, fabric.global_rank, fabric.world_size
        )
        self.shape = {
            "name": config.model.name,
            "num_classes": self.data.num_classes,
            "in_channels": self.data.channels,
            "image_size": self.data.image_size,
            **config.model.options,
        }
        if given.model is None:
            check_memory(self.shape, config, fabric.device)
        fabric.seed_everything(config.seed, verbose=False)
        model = given.create_model(self.shape, config)
        self.began_with = given.start.give(model) if given.start is not None else ""
        self.infinite = find_infinite(model)
        self.learner = Learner(fabric, config, self.data, self.batches, model)
        self.position = Position()
        self._held = ExitStack()  # what keeps other processes out of the folder, and a resumed run's threads
        self.fresh = False  # whether the folder is new: until a step is done, nothing is lost with it
        self.folder = self._open(resume)
        self.clock, self.saved = Clock(), time.monotonic()

    @property
    def model(self) -> Model:
        """Return what is trained, the inner module."""
        return self.learner.model

    @cached_property
    def manifest(self) -> Manifest:
        """Return what the run holds beside its weights; the first process asks for it, since files are read for it."""
        return make_manifest(self.config, self.data, self.shape, self.model.scores)

    def _open(self, resume: bool) -> RunFolder:
        """Return the folder of the run, the same one in all processes; only the first process writes to it."""
        if not self.fabric.is_global_zero:
            return self.fabric.broadcast(RunFolder(self.config.out))
        before = runs_of(self.config)
        folder = open_folder(self.config, resume)
        self.fresh = folder not in before
        self._held.enter_context(folder.hold())
        return self.fabric.broadcast(folder)

    def run(self) -> Result:
        """Train to the end, then test the selected weights; from the checkpoint of the folder, where there is one.

        Where it fails before its first step is done, for another reason than its numbers, it leaves no folder.
        """
        try:
            with self._held, ExitStack() as closing:
                for callback in self.callbacks:
                    closing.callback(callback.close)
                return self._run()
        except Exception as error:
            if self.fresh and not isinstance(error, FloatingPointError):
                self.folder.remove()
            raise

    def _run(self) -> Result:
        begun, before = present(self.folder.last), {}
        if begun:
            if self.fabric.is_global_zero:
                check_images(self.folder, self.manifest)
            self.load()
            before = self.folder.read("environment.json")
            self._held.enter_context(kept_threads(before, self.fabric.device))
        elif self.config.start and not self.began_with:
            raise ValueError(
                f"{self.folder.path} was cut before it had its first weights, those of "
                f"{self.config.start.rpartition(' ')[0]}: give that run's folder again, as start=... or --from"
            )
        forms = self.learner.choose()
        if self.fabric.is_global_zero:
            self.folder.write("model.json", to_plain(self.manifest))
            ours = {"compiled": self.learner.compiled} | self.learner.statistics | forms
            now = describe_environment(self.fabric) | ours
            self.folder.write("environment.json", now | (began_otherwise(before, now) if begun else {}))
        if not begun:
            if self.began_with and self.fabric.is_global_zero:
                warn(self.began_with)
            self.save()
        for callback in self.callbacks:
            callback.on_start(self.folder.path, self.config)
        with self.interruption:
            self._train()
        return self._test()

    def _train(self) -> None:
        with Display(self.config.epochs, len(self.batches), self.fabric.is_global_zero) as display:
            if measured := self.learner.measured:
                averaged = self.learner.average is not None
                why = "averaged weights have no" if averaged else f"{self.learner.steps} steps are too few for"
                display.say(
                    f"batch norm: {why} running statistics, so each evaluation takes those of {measured} training "
                    "batches"
                )
            while self.position.epoch < self.config.epochs:
                self.train_epoch(display)
                self.end_epoch(display)
        self.fabric.barrier()

    def _test(self) -> Result:
        position = self.position
        load_weights(self.folder.best, self.model)
        test = self.evaluate("test", self.model)
        result = Result(
            test_accuracy=test.accuracy,
            test_errors=test.errors,
            test_images=test.images,
            test_label_accuracy=test.label_accuracy,
            test_xnodr_top2=test.xnodr_top2,
            test_top5_accuracy=test.top5_accuracy,
            test_mean_class_accuracy=self._by_class("test", test).get("test_mean_class_accuracy"),
            validation_accuracy=position.selected_accuracy,
            selected_epoch=position.selected_epoch,
            parameters=sum(p.numel() for p in self.model.deployed().parameters() if p.requires_grad),
            seconds=position.seconds,
            cpu_seconds=position.cpu_seconds,
            folder=self.folder.path,
            **self.learner.statistics,
        )
        if self.fabric.is_global_zero:
            self.folder.write_result(result)
        for callback in self.callbacks:
            callback.on_end(result)
        return result

    def train_epoch(self, display: Display) -> None:
        """Take the steps that remain of the epoch.

        What a step returned begins its way to the host at once, and is read while the next step is under way: the
        device never waits.
        """
        position, steps = self.position, len(self.batches)
        enter_stage(self.model, self.config, position.epoch)
        display.start_epoch(position.epoch)
        pending = None
        for images, labels in self.batches.epoch(position.epoch, start=position.step):
            values = Readback(self.step(images, labels))
            if pending is not None:
                self.report(display, *pending)
            position.step += 1
            pending = position.epoch * steps + position.step, values
            if pause := self._pause():
                self.report(display, *pending)
                pending = None
                if not self.batches.restarts or position.step == len(self.batches):
                    self.save()
                self._stop_if(pause == "stop")
        if pending is not None:
            self.report(display, *pending)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Take the step at which the run stands, see `Learner.step`."""
        return self.learner.step(images, labels, self.position.epoch, self.position.step)

    def report(self, display: Display, step: int, values: Readback) -> None:
        """Show what `step`, counted from 1 over the run, returned.

        Raises:
            FloatingPointError: when its loss is not finite.
        """
        loss, accuracy = values.tolist()
        if not math.isfinite(loss):
            raise spoilt(self, f"the loss is {loss}", step)
        self.fresh = False
        self.clock.tick(self.position)
        done = self.position.step * self.config.batch_size
        seconds = self.position.epoch_seconds  # 0 within the first tick of a coarse clock, such as Windows'
        display.step(step, loss, accuracy, done / seconds if seconds else 0.0)
        for callback in self.callbacks:
            callback.on_step(step, loss, accuracy)

    def end_epoch(self, display: Display) -> None:
        """Validate, keep the weights if they are the best so far, record the epoch, and write a checkpoint."""
        position, steps = self.position, len(self.batches)
        check_weights(self)
        train = self.learner.meter.compute()
        self.clock.tick(self.position)
        training_seconds = position.epoch_seconds
        if self.fabric.world_size > 1:  # each process has its own batch statistics; those of the first are kept
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)
        model = self.learner.evaluated(position.epoch)
        validation = self._finite(self.evaluate("validation", model)) if len(self.data.validation) else None
        said = tell_epoch(self.callbacks, position.epoch + 1, model, self.data)
        self.clock.tick(self.position)
        tested = self._test_beside(model)
        position.end_epoch(
            {
                "epoch": position.epoch + 1,
                "step": (position.epoch + 1) * steps,
                "train_loss": train.loss,
                "train_accuracy": train.accuracy,
                "validation_loss": validation.loss if validation and validation.loss < math.inf else None,
                "validation_accuracy": validation.accuracy if validation else None,
                **self._by_class("validation", validation),
                "lr": self.learner.rate,
                "seconds": position.epoch_seconds,
                "images_per_second": steps * self.config.batch_size / training_seconds if training_seconds else 0.0,
                **self.learner.statistics,
                **self._name_penalties(train.penalties),
                **said,
                **tested,
            }
        )
        self.learner.meter.reset()
        tell_record(self.callbacks, position.history[-1])
        if position.select(validation, self.config.select) and self.fabric.is_global_zero:
            save_checkpoint(self.folder.best, model, manifest=self.manifest)
        if self.fabric.is_global_zero:
            self.folder.write_metrics(position.history)
        self.save()
        display.end_epoch(position.history[-1])
        self._stop_if(self.fabric.broadcast(self.interruption.asked))

    def _finite(self, score: Score) -> Score:
        """Return a score of the validation split whose loss, where it is not finite, is the largest of all: what is
        said.
        """
        if math.isfinite(score.loss):
            return score
        if self.fabric.is_global_zero:
            warn(
                f"epoch {self.position.epoch + 1}: the validation loss is {score.loss}; it is left out, and "
                "the largest where accuracies are equal"
            )
        return score._replace(loss=math.inf)

    def _by_class(self, split: str, score: Score | None) -> dict[str, float | None]:
        """Return the mean of the classes' accuracies, where it selects."""
        if self.config.select == "accuracy" or score is None:
            return {}
        return {f"{split}_mean_class_accuracy": score.mean_class_accuracy}

    def _test_beside(self, model: Model) -> dict[str, float | None]:
        """Return loss and accuracy on the test split, where its curve is asked for; its time is none of the run's."""
        if not self.config.test_curve:
            return {}
        test = self.evaluate("test", model)
        self.clock.restart()
        return {"test_loss": test.loss if math.isfinite(test.loss) else None, "test_accuracy": test.accuracy}

    def _name_penalties(self, penalties: Sequence[float]) -> dict[str, Any]:
        """Return what the model added to the loss of the epoch, and each term of it, without its weight; of others
        nothing.
        """
        if not penalties:
            return {}
        added, *terms = penalties
        return {"train_penalty": added, "penalties": dict(zip(self.model.penalties, terms, strict=True))}

    def evaluate(self, split: SplitName, model: Model) -> Score:
        fabric = self.fabric
        batches = self.data.evaluation(split, self.config.batch_size, fabric.global_rank, fabric.world_size)
        return evaluate(fabric, model, batches, self.config.loss, self.data.num_classes)

    def save(self) -> None:
        """Write the checkpoint that `load` reads; all processes call it, the first one writes.

        Raises:
            FloatingPointError: when a weight is not finite; the checkpoint before is kept.
        """
        check_weights(self)
        state = {"position": asdict(self.position), **self.learner.state()}
        if self.fabric.is_global_zero:
            save_checkpoint(self.folder.last, self.model, state, self.manifest)
        self.saved = time.monotonic()

    def load(self) -> None:
        """Go back to the last checkpoint, and `metrics.jsonl` with it.

        Raises:
            ValueError: when it is damaged or not of this run.
        """
        load_weights(self.folder.last, self.model)
        state = load_state(self.folder.last)
        try:
            self._restore(state)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise damaged(self.folder.last, error) from error
        if self.fabric.is_global_zero:
            self.folder.write_metrics(self.position.history)

    def _restore(self, state: dict) -> None:
        position = Position(**state["position"])
        if not (0 <= position.epoch <= self.config.epochs and 0 <= position.step <= len(self.batches)):
            raise ValueError(f"it stands at epoch {position.epoch}, step {position.step}, where this run cannot be")
        self.position = position
        self.learner.restore(state, position.epoch)

    def _stop_if(self, stop: bool) -> None:
        if stop:
            step = self.position.epoch * len(self.batches) + self.position.step
            total, saved = self.learner.steps, f"saved in {self.folder.path}"
            if self.batches.restarts and 0 < self.position.step < len(self.batches):
                saved += f" as it was at the end of epoch {self.position.epoch}: a DataLoader begins an epoch anew"
            raise Interrupted(f"stopped after step {step} of {total}, {saved}")

    def _pause(self) -> Literal["", "save", "stop"]:
        """Return what is to be done between two steps, the same in all processes: nothing, save, or save and stop."""
        last = self.position.step == len(self.batches)
        if self.fabric.world_size > 1 and self.position.step % CLOCK_STEPS and not last:
            return ""
        due = time.monotonic() - self.saved >= self.config.checkpoint_every and not (last or self.batches.restarts)
        return self.fabric.broadcast("stop" if self.interruption.asked else "save" if due else "")
