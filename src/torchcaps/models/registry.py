"""The one list of models: names, their families, and the errors for a name that is not there."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeVar

from torch import Tensor, nn

from torchcaps.capsules import Capsules
from torchcaps.names import check_options, fits, unknown


class Output(NamedTuple):
    """What every model returns."""

    scores: Tensor  # [b, classes]: what the loss and the metrics read (lengths, logits or activations)
    capsules: tuple[Capsules, ...] = ()  # primary capsules first, class capsules last; empty for a plain network
    aux: dict = {}  # noqa: RUF012 - by name: "reconstruction" [b, c, h, w] in [0, 1]; "states", one per routed layer


class Model(nn.Module):
    """A network from images to `Output`; subclasses define `forward(images, labels=None)`.

    `images` is [b, c, h, w]; `labels` is int64 [b] and only tells a decoder which capsule to reconstruct from.
    """

    def reconstruct(self, poses: Tensor, chosen: Tensor) -> Tensor:
        """Images [b, c, h, w] in [0, 1] of class capsules [b, j, d], decoded from the one that `chosen` [b] names."""
        raise ValueError(f"{type(self).__name__} has no decoder to reconstruct with")

    def coefficients(self) -> list[nn.Parameter]:
        """Parameters that a routing learns by an objective of its own, never by the training loss; usually none."""
        return []

    def objective(self, output: Output, targets: Tensor) -> Tensor:
        """What `coefficients` maximise, a scalar; `targets` is [b, classes] of 0 and 1."""
        raise NotImplementedError(f"{type(self).__name__} has no coefficients with an objective of their own")


Factory = Callable[..., Model]
F = TypeVar("F", bound=Factory)
_FACTORIES: dict[str, Factory] = {}


def register_model(name: str) -> Callable[[F], F]:
    """Register a function `(num_classes, in_channels, image_size, **options) -> Model` under `name`."""

    def register(factory: F) -> F:
        assert name not in _FACTORIES, f"model {name!r} is registered twice"
        _FACTORIES[name] = factory
        return factory

    return register


def list_models(pattern: str = "*") -> list[str]:
    """Names of the registered models that match a shell pattern, sorted."""
    return sorted(name for name in _FACTORIES if fnmatchcase(name, pattern))


def create_model(
    name: str,
    *,
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: int | tuple[int, int] = 28,
    **options: object,
) -> Model:
    """Build a registered model with fresh weights.

    Args:
        name: one of `list_models()`.
        num_classes: number of classes, at least 1.
        in_channels: channels of the images, at least 1.
        image_size: side in pixels, or (height, width).
        options: keyword arguments of the model's family.

    Raises:
        ValueError: for a name that is not registered (the nearest one is named), or sizes that the model cannot take.
    """
    if name not in _FACTORIES:
        raise unknown("model", name, _FACTORIES, "`torchcaps list models` shows all")
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or not all(fits(side, int) and side > 0 for side in sides):
        raise ValueError(f"image_size is {image_size}; it must be a side of at least 1 pixel, or height and width")
    for what, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if not fits(value, int) or value < 1:
            raise ValueError(f"{what} is {value!r}; it must be a whole number, at least 1")
    factory = _FACTORIES[name]
    check_options(f"model {name!r}", factory, options)
    try:
        return factory(num_classes=num_classes, in_channels=in_channels, image_size=sides, **options)
    except (ArithmeticError, RuntimeError, TypeError) as error:  # of torch's own layers: no such sizes can be
        given = ", ".join(f"{key} {value}" for key, value in options.items())
        raise ValueError(f"model {name!r} cannot be built with {given or 'its defaults'}: {error}") from error
