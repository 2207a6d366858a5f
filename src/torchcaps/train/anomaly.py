"""Where numbers stop being finite: the steps since the last checkpoint are repeated under the eyes of a `Watch`.

When a loss turns out to be NaN or infinite, the weights in memory are spoilt already: the update that followed has
spread it to all of them. A step being a function of position, weights and optimisers alone, the steps from the last
checkpoint to the bad one are repeated from there, and what each layer returns, and the gradients that flow back, are
looked at in the order in which they are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import TracebackType
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torchcaps.config import Config
from torchcaps.data import Batches
from torchcaps.models import Model
from torchcaps.train.checkpoint import present
from torchcaps.train.position import Position
from torchcaps.train.run import RunFolder
from torchcaps.train.stages import enter_stage

STEPS = 2  # that are watched, the bad one last: what spoils a loss may have happened in the update before


class Repeatable(Protocol):
    """A run whose steps can be taken again from its last checkpoint."""

    config: Config
    fabric: Fabric
    batches: Batches
    position: Position
    folder: RunFolder
    infinite: frozenset[str]  # buffers that held what is not finite when the run began, such as a mask of -inf

    @property
    def model(self) -> Model:
        """Return what is trained."""
        ...

    def load(self) -> None:
        """Go back to the last checkpoint."""
        ...

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Take the step at which the run stands; returns loss and accuracy."""
        ...


class Watch:
    """A context in which the first value that is not finite, of what `model` computes, is noted in `found`.

    Args:
        model: its layers' outputs, and the gradients of these and of the weights, are looked at.
        gradients: whether they are. With a scaled loss (fp16) infinite ones are nothing bad: such steps are skipped.
    """

    def __init__(self, model: nn.Module, gradients: bool = True):
        self.model, self.gradients = model, gradients
        self.found: str | None = None
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Watch:
        for name, module in self.model.named_modules():
            where = f"layer {name!r}" if name else f"the model ({type(module).__name__})"
            self._handles.append(module.register_forward_hook(partial(self._forward, where)))
        for name, parameter in self.model.named_parameters():
            if self.gradients and parameter.requires_grad:
                self._handles.append(parameter.register_hook(partial(self.look, f"the gradient of {name!r}")))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def look(self, where: str, value: Tensor) -> None:
        """Note `where`, unless something was found before or `value` is finite."""
        if self.found is None and not finite([value]):
            self.found = where

    def look_at_weights(self, infinite: frozenset[str] = frozenset()) -> None:
        """Note the first weight or buffer that is not finite, those in `infinite` left out."""
        for name, value in self.model.state_dict().items():
            if name not in infinite:
                self.look(f"{name!r} after its update", value)

    def _forward(self, where: str, module: nn.Module, inputs: Any, output: Any) -> None:
        for tensor in tensors(output):
            self.look(f"the output of {where}", tensor)
            if self.gradients and tensor.requires_grad:
                tensor.register_hook(partial(self.look, f"the gradient at the output of {where}"))


def find_infinite(model: nn.Module) -> frozenset[str]:
    """Return the names of buffers that hold what is not finite."""
    saved = model.state_dict()
    return frozenset(name for name, value in model.named_buffers() if name in saved and not finite([value]))


def check_weights(trainer: Repeatable) -> None:
    """Raise FloatingPointError where a weight is not finite, in any process, after the step at which the run stands;
    all processes call it.
    """
    values = [value for name, value in trainer.model.state_dict().items() if name not in trainer.infinite]
    if not everywhere(finite(values), trainer.fabric):
        position = trainer.position
        raise spoilt(trainer, "weights are not finite", position.epoch * len(trainer.batches) + position.step)


def spoilt(trainer: Repeatable, what: str, step: int) -> FloatingPointError:
    """Return the error for `what` was found after `step` of the run, which is of the epoch that has begun."""
    epoch = trainer.position.epoch
    if present(trainer.folder.last) is None:
        return FloatingPointError(f"{what} before the first step: of the model as it was given or built")
    where = trace(trainer, step - epoch * len(trainer.batches))
    found = f"; first in {where}" if where else "; not so when the steps since the last checkpoint were repeated"
    return FloatingPointError(
        f"{what} at step {step} (epoch {epoch + 1}){found}. The checkpoint before it is kept in "
        f"{trainer.folder.last}; a smaller optimiser.lr, clip, or precision fp32 may keep numbers finite"
    )


def trace(trainer: Repeatable, last: int) -> str | None:
    """Return where the first value that is not finite appears before step `last` of the epoch is done, in any process.

    None where all goes well this time, as it may on a device that does not repeat itself bit by bit. The trainer is
    then at another step than before.
    """
    trainer.load()
    position = trainer.position
    enter_stage(trainer.model, trainer.config, position.epoch)
    watch = Watch(trainer.model, gradients=getattr(trainer.fabric.strategy.precision, "scaler", None) is None)
    for images, labels in trainer.batches.epoch(position.epoch, position.step):
        if position.step < last - STEPS:
            trainer.step(images, labels)
        else:
            with watch, torch.compiler.set_stance("force_eager"):  # compiled code would call no hooks
                loss = trainer.step(images, labels)[0]
                watch.look("the loss, of finite scores", loss)
                watch.look_at_weights(trainer.infinite)
        position.step += 1
        found = first(watch.found, trainer.fabric.world_size)
        if found is not None or position.step == last:
            return found
    return None


def first(found: str | None, processes: int) -> str | None:
    """Return what the first of all `processes` that found something has `found`; all must call it together."""
    if processes == 1:
        return found
    answers: list[str | None] = [None] * processes
    torch.distributed.all_gather_object(answers, found)
    return next((answer for answer in answers if answer is not None), None)


def everywhere(said: bool, fabric: Fabric) -> bool:
    """Return whether all processes say so, the same in each; all must call it together."""
    if fabric.world_size == 1:
        return said
    answer = torch.tensor(said, dtype=torch.int32, device=fabric.device)
    torch.distributed.all_reduce(answer, torch.distributed.ReduceOp.MIN)
    return bool(answer)


def finite(values: list[Tensor]) -> bool:
    """Return whether no floating number of `values` is NaN or infinite; they are on one device."""
    sums = [value.detach().isfinite().all() for value in values if value.is_floating_point()]
    return not sums or bool(torch.stack(sums).all())


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the floating tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, tuple | list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors(each)
