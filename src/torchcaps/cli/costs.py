"""`torchcaps cost`: what a model costs."""

from __future__ import annotations

import dataclasses
from json import dumps
from typing import Annotated

import tyro
from tyro.conf import Positional

from torchcaps.cli.listing import print_lines
from torchcaps.cli.options import listed
from torchcaps.config import Option
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
) -> None:
    """Count the parameters, multiply-adds and memory of a model; it is built without memory, so it may be of any size.

    Args:
        model: a name from `torchcaps list models`
        image_size: side in pixels; else that of the data set in the name, 224 of timm's models, or 28
        channels: channels of the images; else those of the data set in the name, 3 of timm's models, or 1
        classes: number of classes; else those of the data set in the name, or 10
        options: keyword arguments of the model's family, e.g. channels 64
        json: print one JSON object
    """
    from torchcaps.cost import count_cost

    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is {image_size}; it must be at least 1 pixel")
    given = listed(options or {})
    counted = count_cost(model, num_classes=classes, in_channels=channels, image_size=image_size, **given)
    measured = dataclasses.asdict(counted)
    if json:
        say(dumps(measured))
    else:
        print_lines((name.replace("_", " "), f"{value:>16,}  {UNITS[name]}") for name, value in measured.items())
