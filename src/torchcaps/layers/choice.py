"""Which form each capsule layer of a model takes on a device: both are timed there, and the faster one is kept.

Only `choose` and `fit` time anything. A layer's own forward pass never does, whether it is compiled, exported, traced
or run: it takes what was chosen, or else what a fixed rule on its shapes says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from math import isinf
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from torchcaps.capsules import Capsules, transformed
from torchcaps.kernels import timing
from torchcaps.kernels.probe import Known
from torchcaps.layers.layer import CapsuleLayer, CapsuleStack, evaluating
from torchcaps.routing import Step
from torchcaps.routing.fused import DEVICES, Form, lacks

Forms = dict[str, dict[str, Form]]  # by layer, then by kind of device


class Choice(NamedTuple):
    """The form that a layer takes, and why; milliseconds of each, where they were timed and memory sufficed."""

    form: Form
    why: str
    plain_ms: float | None = None
    fused_ms: float | None = None


class _Use(NamedTuple):
    """How a model uses a layer: the children that it is given, and its iterations."""

    children: Capsules
    iterations: int


def choose(model: nn.Module, example: Any, compiled: bool = False, keep: bool = False) -> dict[str, Choice]:
    """Have each capsule layer of `model` take the faster of its two forms on the device of `example`.

    On CUDA each layer's kernel is tried, and timed beside the plain step on random numbers of the shapes that `example`
    gives the layer: forward and backward where `model` is in training mode, forward alone in evaluation mode; under
    autocast where that is on around the call. What was found holds for every size of a batch, and for copies of the
    model; `chosen_forms` gives it, to be kept. On a CPU nothing is timed, as a fixed rule on shapes decides; nor is it
    on tensors without numbers (meta, fake), within `torch.func`, or while code is compiled. Of several processes the
    first one decides for all; all of them call this together.

    Args:
        model: anything with capsule layers. Those whose implementation is not "auto" stay as they are.
        example: what `model` is called with: a tensor, or a tuple of arguments.
        compiled: time forms that are compiled.
        keep: whether what was chosen before stands; of such layers the kernel is tried, and nothing timed.

    Returns:
        By name of the layer, what it takes, in the order of the model's modules.

    Raises:
        ValueError: when `example` holds no tensor.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile, whose own names begin with that
    arguments = example if type(example) is tuple else (example,)
    device = _device(arguments)
    layers = {name: each for name, each in _layers(model).items() if each.fused and each.implementation == "auto"}
    if device.type not in timing.TIMED or not _holds_numbers(arguments):
        why = f"a fixed rule on shapes decides on {device.type}"
        return {name: Choice(each.form(device.type), why) for name, each in layers.items()}
    if not keep:
        for layer in layers.values():
            layer.chosen.pop(device.type, None)
    uses = _uses(model, arguments, device)
    found = {name: _choice(each, uses.get(each), device, model.training, compiled) for name, each in layers.items()}
    agreed = _agreed(found)
    for name, choice in agreed.items():
        layers[name].chosen[device.type] = choice.form
    return agreed


def chosen_forms(model: nn.Module) -> Forms:
    """Return what `choose` found, by layer and kind of device; `set_forms` takes it."""
    return {name: dict(each.chosen) for name, each in _layers(model).items() if each.chosen}


def set_forms(model: nn.Module, forms: Mapping[str, Mapping[str, Form]]) -> None:
    """Give the layers of `model` what `chosen_forms` found before.

    Raises:
        ValueError: for a layer that the model has not, and for another form than "plain" and "fused".
    """
    layers = _layers(model)
    for name, by_device in forms.items():
        if name not in layers:
            raise ValueError(f"forms name the layer {name!r}, which the model has not; it has {', '.join(layers)}")
        for form in by_device.values():
            if form not in ("plain", "fused"):
                raise ValueError(f"the form of layer {name!r} is {form!r}; it must be plain or fused")
    for name, by_device in forms.items():
        layers[name].chosen.update(by_device)


def _layers(model: nn.Module) -> dict[str, CapsuleLayer]:
    return {name: each for name, each in model.named_modules() if isinstance(each, CapsuleLayer)}


def _device(arguments: tuple[Any, ...]) -> torch.device:
    tensors = list(_tensors(arguments))
    if not tensors:
        raise ValueError(f"example holds no tensor, but {', '.join(type(x).__name__ for x in arguments) or 'nothing'}")
    return tensors[0].device


def _tensors(arguments: tuple[Any, ...]) -> Iterator[Tensor]:
    for each in arguments:
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, tuple):  # such as Capsules
            yield from _tensors(each)


def _holds_numbers(arguments: tuple[Any, ...]) -> bool:
    """Return whether tensors are computed now, each by itself."""
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or transformed():
        return False
    return all(type(x) in (Tensor, nn.Parameter) for x in _tensors(arguments))


def _uses(model: nn.Module, arguments: tuple[Any, ...], device: torch.device) -> dict[CapsuleLayer, _Use]:
    """Return how each layer is used in a forward pass of evaluation mode, of which nothing is left behind."""
    uses: dict[CapsuleLayer, _Use] = {}

    def of_stack(stack: nn.Module, given: tuple, options: dict[str, Any], steps: tuple[Step, ...]) -> None:
        assert isinstance(stack, CapsuleStack)
        children, plan = given[0] if given else options["children"], stack.plan()
        for level, layer in enumerate(stack.layers):
            assert isinstance(layer, CapsuleLayer)
            uses[layer] = _Use(children, sum(level == each for each, _ in plan))
            children = steps[level].capsules

    def of_layer(layer: nn.Module, given: tuple, options: dict[str, Any], step: Step) -> None:
        assert isinstance(layer, CapsuleLayer)
        named = dict(zip(("children", "iterations"), given, strict=False)) | options
        uses[layer] = _Use(named["children"], named.get("iterations", 1))

    with ExitStack() as stack:
        stack.enter_context(_evaluating(model, device))
        for module in model.modules():
            for kind, hook in ((CapsuleStack, of_stack), (CapsuleLayer, of_layer)):
                if isinstance(module, kind):
                    stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        model(*arguments)
    return uses


@contextmanager
def _evaluating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Return evaluation mode, eager and without gradients, after which modes and random numbers are as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), torch.random.fork_rng(devices), evaluating(model):
        yield


def _choice(layer: CapsuleLayer, use: _Use | None, device: torch.device, learns: bool, compiled: bool) -> Choice:
    """Return what this process finds of a layer; the first of several times it, the others try its kernel."""
    if use is None:
        return Choice(layer.form(device.type), "the example does not reach it, so a fixed rule on shapes decides")
    before = layer.chosen.get(device.type)
    if before == "plain":
        return Choice(before, "it was chosen before")
    if device.type not in DEVICES:
        return Choice("plain", lacks(device.type))
    kernel = layer.kernel
    assert kernel is not None
    with torch.no_grad():
        votes = layer.votes(use.children)
    if not isinstance(votes, Known):
        return Choice(layer.form(device.type), "its votes are of a class of one's own, so its rule decides")
    if not kernel.taken(layer.routing, votes):
        return Choice("plain", kernel.fault(votes) or "")
    if before is not None:
        return Choice(before, "it was chosen before")
    if _rank():
        return Choice("plain", "the first process decides")
    timed = partial(timing.time_forms, kernel.step, layer.routing, votes, use.iterations, learns)
    try:
        times = timed(compiled)
    except Exception:  # of torch's compiler, which may take the whole of a training step, and not a form alone
        if not compiled:
            raise
        times = timed(False)
    taken = [None if isinf(x) else round(1000 * x, 4) for x in (times.plain, times.fused)]
    if times.fault is not None:
        return Choice("plain", times.fault, *taken)
    if isinf(times.plain) and isinf(times.fused):
        return Choice(layer.form(device.type), "memory sufficed for neither, so a fixed rule on shapes decides")
    form: Form = "fused" if times.fused < times.plain else "plain"
    return Choice(form, "both were timed", *taken)


def _rank() -> int:
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def _agreed(found: dict[str, Choice]) -> dict[str, Choice]:
    """Return what the first process found, in all of them."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return found
    box = [found]
    distributed.broadcast_object_list(box, 0)
    return box[0]
