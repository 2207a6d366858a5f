"""Whether a network can be trained in the memory that there is: judged before it is built, by its weights alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch

from torchcaps.config import Config, OptimiserConfig
from torchcaps.memory import free_memory
from torchcaps.models.registry import create_meta, find_factory

SMALLER = {  # option: factors that are tried in turn; a larger stride and a smaller image leave fewer capsules
    "stride": (2, 4, 8),
    "kernel": (7 / 9, 5 / 9, 1 / 3),
    "primary": (1 / 2, 1 / 4, 1 / 8),
    "types": (1 / 2, 1 / 4, 1 / 8),
    "channels": (1 / 2, 1 / 4, 1 / 8),
}
SIDES = (1 / 2, 1 / 4, 1 / 8)


def check_memory(shape: dict[str, Any], config: Config, device: torch.device) -> None:
    """Raise ValueError, with sizes that would do, where a network's weights, gradients and moments exceed the memory.

    Args:
        shape: what `create_model` will be called with.
        config: of the run.
        device: that the network will be on.
    """
    memory = free_memory(device)
    try:
        weights = weight_bytes(shape)
    except ValueError:  # building it says what is wrong
        return
    processes = config.processes if device.type == "cpu" else 1
    copies = processes * (2 + moments(config.optimiser))
    if memory is None or copies * weights <= memory:
        return
    height, width = shape["image_size"]
    side = "--data.image-size" if config.data.enlarge is None else "--data.enlarge"
    other = "a timm model with a head, such as --model.name resnet18.dynamic"
    mends = [*suggest(shape, memory / copies, side), other]
    raise ValueError(
        f"model {shape['name']!r} for {width}x{height} pixels and {shape['num_classes']} classes has "
        f"{weights / 1e9:.3g} GB of weights; training takes {copies * weights / 1e9:.3g} GB with gradients and the "
        f"moments of {config.optimiser.name}, and {device.type} has {memory / 1e9:.3g} GB: take {', or '.join(mends)}"
    )


def weight_bytes(shape: dict[str, Any]) -> int:
    """Return bytes of the parameters and buffers of a network, which is built without memory for them."""
    model = create_meta(**shape)
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def moments(optimiser: OptimiserConfig) -> int:
    """Return how many numbers an optimiser keeps for each weight."""
    kept = {"adam": 2, "adamw": 2, "rmsprop": 1}.get(optimiser.name, 0)
    return kept + (optimiser.name in ("sgd", "rmsprop") and optimiser.momentum > 0)


def suggest(shape: dict[str, Any], most: float, side: str = "--data.image-size") -> Iterator[str]:
    """Yield flags that each bring the weights of a network below `most` bytes, with what they then are; one of a kind.

    `side` is the flag that the size of its images follows.
    """
    parameters = inspect.signature(find_factory(shape["name"])).parameters
    for option, factors in SMALLER.items():
        given = shape.get(option, parameters[option].default if option in parameters else None)
        if isinstance(given, int):
            tried = ({option: max(1, round(given * factor))} for factor in factors)
            yield from _first(shape, tried, most, f"--model.options {option}")
    height, width = shape["image_size"]
    if height == width:
        sides = ({"image_size": (max(1, round(height * factor)),) * 2} for factor in SIDES)
        yield from _first(shape, sides, most, side)


def _first(shape: dict[str, Any], tried: Iterator[dict[str, Any]], most: float, flag: str) -> Iterator[str]:
    for change in tried:
        with suppress(ValueError):  # no such network can be
            weights = weight_bytes(shape | change)
            if weights <= most:
                (value,) = change.values()
                yield f"{flag} {value[0] if isinstance(value, tuple) else value} ({weights / 1e9:.3g} GB)"
                return
