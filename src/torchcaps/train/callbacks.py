"""What may look at a run while it trains, and adds lines of its own; nothing that it does changes the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch

from torchcaps.config import Config
from torchcaps.data import Data
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
            data: of the run, on its device.
        """
        return {}

    def on_record(self, record: Mapping[str, Any]) -> None:
        """See the line of an epoch, as metrics.jsonl has it."""

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
        ValueError: when two of them say the same thing, or one changed the model.
    """
    said: dict[str, Any] = {}
    for callback in callbacks:
        with _unchanged(callback, model):
            found = callback.on_epoch_end(epoch, model, data)
        if twice := said.keys() & found.keys():
            raise ValueError(f"two callbacks say {min(twice)!r} of an epoch: {type(callback).__name__} is the second")
        said |= found
    return said


@contextmanager
def _unchanged(callback: Callback, model: Model) -> Iterator[None]:
    """Hold a callback to its promise: numbers are drawn as if it had drawn none, and the model is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    tensors = {name: (tensor, tensor._version) for name, tensor in model.state_dict(keep_vars=True).items()}
    devices = {tensor.device for tensor, _ in tensors.values() if tensor.device.type == "cuda"}
    with torch.random.fork_rng(sorted(device.index for device in devices)):
        yield
    for module, mode in modes:
        module.training = mode
    for name, (tensor, version) in tensors.items():
        if tensor._version != version:
            raise ValueError(f"callback {type(callback).__name__} changed {name!r} of the model, which it may only see")
