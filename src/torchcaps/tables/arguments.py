"""What the network of a recipe is made for: classes, channels and the size of its images, without reading its data."""

from __future__ import annotations

from typing import Any

from torchcaps.config import Config, DataConfig
from torchcaps.data.catalogue import find
from torchcaps.data.facts import data_facts, named_channels, named_classes, named_size


def model_arguments(config: Config) -> dict[str, Any]:
    """Return what `create_model` is called with for a recipe, without reading its data; of the user's own, see
    `data_facts`.

    Raises:
        FileNotFoundError, ValueError: as `data_facts` of the user's own files.
    """
    _, path = find(config.data.name)
    data = config.data
    size, classes, channels = named_size(data), named_classes(data), named_channels(data) or 3
    if path is not None:
        facts = data_facts(data)
        size, classes, channels = size or facts.size, facts.classes, _channels(data, facts.colour)
    assert size is not None, config.data.name
    return {
        "name": config.model.name,
        "num_classes": classes,
        "in_channels": channels,
        "image_size": size,
        **config.model.options,
    }


def _channels(data: DataConfig, colour: bool) -> int:
    return {"auto": 3 if colour else 1, "grey": 1, "rgb": 3}[data.colour]


def image_shape(config: Config) -> tuple[int, int, int]:
    """Return channels, height and width of the images that the network of a recipe sees."""
    shape = model_arguments(config)
    size = shape["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return shape["in_channels"], height, width
