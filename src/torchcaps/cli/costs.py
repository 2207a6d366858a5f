"""`torchcaps cost`: what a model costs."""

from __future__ import annotations

import dataclasses
from json import dumps
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from torchcaps.cli.listing import print_lines
from torchcaps.config import Option
from torchcaps.shell import listed
from torchcaps.terminal import say

UNITS = {  # of the fields of `Cost`
    "parameters": "trainable",
    "multiply_adds": "an image",
    "activation_memory": "bytes an image, held for backward",
    "weight_memory": "bytes, of parameters and buffers",
    "operations": "an image, all arithmetic of plain steps, routing included",
    "widening_parameters": "of layers that only bring features to a whole number of capsules",
}


def cost(
    model: Annotated[Positional[str], tyro.conf.arg(metavar="MODEL")],
    image_size: int | None = None,
    channels: int | None = None,
    classes: int | None = None,
    options: dict[str, Option] | None = None,
    json: bool = False,
    profile: bool = False,
    batch_size: int = 128,
) -> None:
    """Count the parameters, multiply-adds and memory of a model; it is built without memory, so it may be of any size.

    With --profile the model is trained for a few steps on this machine's CPU, as `torchcaps train` would, on noise, and
    where a step's time goes is printed in place of what it costs.

    For example: `torchcaps cost resnet18.fm --classes 10`.

    Args:
        model: a name from `torchcaps list models`
        image_size: side in pixels; else that of the data set in the name, 224 of timm's models, or 28
        channels: channels of the images; else those of the data set in the name, 3 of timm's models, or 1
        classes: number of classes; else those of the data set in the name, or 10
        options: keyword arguments of the model's family, e.g. channels 64
        json: print one JSON object
        profile: time the parts of a training step: convolutions, norms, capsules, loss, optimiser, data
        batch_size: of that step
    """
    from torchcaps.cost import count_cost

    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is {image_size}; it must be at least 1 pixel")
    given = {"num_classes": classes, "in_channels": channels, "image_size": image_size, **listed(options or {})}
    if profile:
        _profile(model, given, batch_size, json)
        return
    counted = count_cost(model, **given)
    measured = dataclasses.asdict(counted)
    if json:
        say(dumps(measured))
    else:
        print_lines((name.replace("_", " "), f"{value:>16,}  {UNITS[name]}") for name, value in measured.items())


def _profile(model: str, given: dict[str, Any], batch_size: int, json: bool) -> None:
    """Print the seconds and shares of a training step."""
    from torchcaps.config import Config, LossConfig
    from torchcaps.models import create_model
    from torchcaps.train.profile import profile_step

    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1 image")
    built = create_model(model, **given)
    assert built.input_shape is not None and built.origin is not None
    loss = LossConfig("cross-entropy" if built.scores == "logit" else "margin")
    config = Config(loss=loss, batch_size=batch_size)
    seconds = profile_step(built, config, built.input_shape, built.origin["num_classes"])
    if json:
        say(dumps(seconds))
        return
    whole = sum(seconds.values())
    print_lines((share, f"{1000 * each:>10,.1f} ms  {each / whole:>5.1%}") for share, each in seconds.items())
    say(f"{batch_size / whole:,.1f} images a second, as the profiler sees it, which takes time of its own")
