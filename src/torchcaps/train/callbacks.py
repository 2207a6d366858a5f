"""What may look at a run while it trains, and adds lines of its own; nothing that it does changes the run."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchcaps.config import Config
from torchcaps.data import Data
from torchcaps.layers import CapsuleStack
from torchcaps.models import Model
from torchcaps.terminal import note
from torchcaps.train.run import Result

PROBES = ("agreement",)  # fields of a `Config` that ask for a callback


class Callback:
    """Called by `fit` as it goes, in every process; subclasses define what they need.

    With several processes it travels to each of them, so it must be picklable.
    """

    answers: ClassVar[tuple[str, ...]] = ()  #: of `PROBES`, those that it is for

    def on_start(self, folder: Path, config: Config) -> None:
        """See the folder of the run and its config, before the first step; of a run that goes on too."""

    def on_step(self, step: int, loss: float, accuracy: float) -> None:
        """See the loss and the accuracy, in [0, 1], of the batch of `step`, counted from 1 over the run."""

    def on_epoch_end(self, epoch: int, model: Model, data: Data) -> Mapping[str, Any]:
        """Return what the line of the epoch says besides, as JSON can hold it.

        Args:
            epoch: counted from 1.
            model: as it is evaluated and selected; it must be left as it is.
            data: of the run, on its device; it must be left as it is.
        """
        return {}

    def on_record(self, record: Mapping[str, Any]) -> None:
        """See the line of an epoch, as metrics.jsonl has it: a copy."""

    def on_end(self, result: Result) -> None:
        """See what the run ended with; not called of a run that was stopped or failed."""

    def close(self) -> None:
        """Let go of what it holds: called last, however the run ends."""


class SayAhead(Callback):
    """Says `text` once a first step is done: a run that cannot begin has one thing to say, and that is why."""

    def __init__(self, text: str):
        self.text: str | None = text

    def on_step(self, step: int, loss: float, accuracy: float) -> None:
        if self.text is not None:
            note(self.text)
            self.text = None


def check_callbacks(config: Config, callbacks: Sequence[Callback]) -> None:
    """Raise ValueError when the config asks for a probe, and no callback answers it."""
    answered = {name for callback in callbacks for name in callback.answers}
    for name in PROBES:
        if (value := getattr(config, name)) and name not in answered:
            raise ValueError(
                f"{name} is {value}, which asks for a callback that measures it, and fit has none: pass "
                f"callbacks=torchcaps.inspect.find_probes(config), or set {name} to 0"
            )


def tell_epoch(callbacks: Sequence[Callback], epoch: int, model: Model, data: Data) -> dict[str, Any]:
    """Return what all callbacks say of an epoch.

    Raises:
        ValueError: when two of them say the same thing, or one changed the model or the images.
    """
    said: dict[str, Any] = {}
    for callback in callbacks:
        with _unchanged(callback, model, data):
            found = callback.on_epoch_end(epoch, model, data)
        if twice := said.keys() & found.keys():
            raise ValueError(f"two callbacks say {min(twice)!r} of an epoch: {type(callback).__name__} is the second")
        said |= found
    return said


def tell_record(callbacks: Sequence[Callback], record: Mapping[str, Any]) -> None:
    """Show the line of an epoch to all callbacks, a copy to each."""
    for callback in callbacks:
        callback.on_record(copy.deepcopy(dict(record)))


@contextmanager
def _unchanged(callback: Callback, model: Model, data: Data) -> Iterator[None]:
    """Hold a callback to its promise: numbers are drawn as if it had drawn none, and model and images are as they
    were.
    """
    modes = [(module, module.training) for module in model.modules()]
    stacks = [(each, each.iterations, each.schedule) for each in model.modules() if isinstance(each, CapsuleStack)]
    weights = model.state_dict(keep_vars=True)
    tensors = {f"{name!r} of the model": tensor for name, tensor in weights.items()} | _tensors_of(data)
    versions = {name: tensor._version for name, tensor in tensors.items()}
    devices = {tensor.device for tensor in weights.values() if tensor.device.type == "cuda"}
    with torch.random.fork_rng(sorted(device.index for device in devices)):
        yield
    for module, mode in modes:
        module.training = mode
    changed = [name for name, tensor in tensors.items() if tensor._version != versions[name]]
    changed += [
        "iterations or schedule of the model" for stack, *was in stacks if [stack.iterations, stack.schedule] != was
    ]
    if changed:
        raise ValueError(f"callback {type(callback).__name__} changed {changed[0]}, which it may only see")


def _tensors_of(data: Data) -> dict[str, Tensor]:
    """Return what the splits hold as tensors, by what to call it."""
    return {
        f"{name} of the {split} split": value
        for split in ("train", "validation", "test")
        for name, value in vars(getattr(data, split)).items()
        if isinstance(value, Tensor)
    }
