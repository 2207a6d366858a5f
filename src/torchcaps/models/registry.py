"""The one list of models: names, their families, and the errors for a name that is not there."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from torchcaps.capsules import Capsules
from torchcaps.config import SHAPE, ModelConfig, ScoreKind
from torchcaps.layers import CapsuleStack, Schedule
from torchcaps.names import OF_TWIN, RESERVED, ROUTING, YOURS, check_name, check_options, enter, unknown, whole
from torchcaps.plugins import load_plugins
from torchcaps.revisions import routing_of
from torchcaps.routing import routing_class

_ROUTED = ("iterations", "schedule")  # settings of a model that not every factory takes


class Output(NamedTuple):
    """What every model returns."""

    scores: Tensor  # [b, classes]: what the loss and the metrics read (lengths, logits or activations)
    capsules: tuple[Capsules, ...] = ()  # primary capsules first, class capsules last; empty for a plain network
    # By name: "reconstruction" [b, c, h, w] in [0, 1]; "steps", one of each routed layer; empty and fixed where a model
    # gives none, so that what is written into the one of an output is not read in another's;
    # in training "penalty", a scalar that the loss adds, and "penalties", its terms [n] without their weight
    aux: Mapping[str, Any] = MappingProxyType({})

    def __reduce__(self) -> tuple[type[Output], tuple[object, ...]]:
        """Return how it is pickled and copied, which what cannot be written to is not: it is left to the default."""
        return Output, (self.scores, self.capsules, *([dict(self.aux)] if self.aux else []))


class Model(nn.Module):
    """A network from images to `Output`; subclasses define `forward(images, labels=None)`.

    `images` is [b, c, h, w]; `labels` is int64 [b] and only tells a decoder which capsule to reconstruct from.
    `origin` is what `create_model` was called with, by argument; None for models that were built otherwise.
    """

    origin: dict[str, Any] | None = None
    penalties: tuple[str, ...] = ()  #: names of the terms `aux["penalties"]` that it adds to the loss in training

    @property
    def scores(self) -> ScoreKind | None:
        """Return what a score is, as losses must know it: a "length" in [0, 1), a "probability" or a "logit".

        None of a network that does not say, which then takes any loss.
        """
        return None

    @property
    def input_shape(self) -> tuple[int, int, int] | None:
        """Return (channels, height, width) of the images that it was made for; None where it does not say."""
        if self.origin is None or not {"in_channels", "image_size"} <= self.origin.keys():
            return None
        height, width = self.origin["image_size"]
        return self.origin["in_channels"], height, width

    @property
    def iterations(self) -> int:
        """Return the iterations of the routing, at least 1; it may be changed after training.

        Raises:
            ValueError: for a network without routed capsules, and when set to anything but a whole number above 0.
        """
        return self._stacks("iterations")[0].iterations

    @iterations.setter
    def iterations(self, value: int) -> None:
        self._route("iterations", value)

    @property
    def schedule(self) -> Schedule:
        """Return the order of the iterations of several layers, "sequential" or "concurrent", see `CapsuleStack`; it
        may be changed too.

        Raises:
            ValueError: for a network without routed capsules, and when set to anything but one of the two.
        """
        return self._stacks("schedule")[0].schedule

    @schedule.setter
    def schedule(self, value: Schedule) -> None:
        self._route("schedule", value)

    def _route(self, setting: str, value: object) -> None:
        """Set what all stacks have, and what builds the model anew."""
        for stack in self._stacks(setting):
            setattr(stack, setting, value)
        if self.origin is not None:
            self.origin[setting] = value

    def _stacks(self, setting: str) -> list[CapsuleStack]:
        stacks = [module for module in self.modules() if isinstance(module, CapsuleStack)]
        if not stacks:
            raise ValueError(f"{type(self).__name__} routes no capsules, so it has no {setting}")
        return stacks

    def reconstruct(self, poses: Tensor, chosen: Tensor) -> Tensor:
        """Return images [b, c, h, w] in [0, 1], decoded from that of the class capsules [b, j, d] which `chosen` [b]
        names.
        """
        raise ValueError(f"{type(self).__name__} has no decoder to reconstruct with")

    def deployed(self) -> Model:
        """Return what is left of the model at inference: itself, unless parts of it serve training alone."""
        return self

    def coefficients(self) -> list[nn.Parameter]:
        """Return the parameters that a routing learns by an objective of its own, never by the training loss; usually
        none.
        """
        return []

    def objective(self, output: Output, targets: Tensor, batch: int | None = None) -> Tensor:
        """Return what `coefficients` maximise, a scalar: a mean over images, less penalties over the number of these.

        Args:
            output: of the images.
            targets: [b, classes] of 0 and 1.
            batch: images of the joint batch, where several processes have each a share of it; None: b.
        """
        raise NotImplementedError(f"{type(self).__name__} has no coefficients with an objective of their own")


Factory = Callable[..., Model]
F = TypeVar("F", bound=Factory)
_FACTORIES: dict[str, Factory] = {}


_PRETRAINED: list[Factory] = []  # the one function that makes trained models, once it is registered


def register_pretrained(factory: F) -> F:
    """Have `create_model` make trained models by `factory`, of their name and the options that they must have."""
    assert not _PRETRAINED, "registered twice"
    _PRETRAINED.append(factory)
    return factory


class Family(NamedTuple):
    """Models whose names are made of parts, more of them than are worth a list."""

    listed: Callable[[], Sequence[str]]  # the names that listings show
    factory: Callable[[str], Factory | None]  # of a name; None where it is not of this family


_FAMILIES: list[Family] = []


def register_model(name: str) -> Callable[[F], F]:
    """Register a function `(num_classes, in_channels, image_size, **options) -> Model` under `name`.

    Where one of the three has a default, that is what `create_model` takes when it is told none. Defined again, a
    function takes the place of what it was.

    Raises:
        TypeError: without a name.
        ValueError: for a name that no model can have, or that another one has.
    """
    if not isinstance(name, str):
        raise TypeError(f'register_model was given {name!r}; it takes a name: @register_model("my-network")')
    check_name("model", name, "-_", reserved=RESERVED)

    def register(factory: F) -> F:
        enter("model", _FACTORIES, name, factory)
        return factory

    return register


def register_family(listed: Callable[[], Sequence[str]], factory: Callable[[str], Factory | None]) -> None:
    """Register models by a rule for their names, see `Family`; neither function is called before a name is asked for.

    `factory` raises ValueError for a name that is of the family by its form, but of which a part does not exist.
    """
    _FAMILIES.append(Family(listed, factory))


def register_variant(name: str, factory: Factory, **defaults: object) -> None:
    """Register `factory`, a function, under `name` as well, with other `defaults` for some of its arguments."""
    signature = inspect.signature(factory)
    assert set(defaults) <= set(signature.parameters), f"{name} sets what {factory} does not have"

    @functools.wraps(factory)
    def build(**options: object) -> Model:
        return factory(**defaults | options)

    others = (each.replace(default=defaults.get(each.name, each.default)) for each in signature.parameters.values())
    build.__signature__ = signature.replace(parameters=list(others))  # pyright: ignore[reportAttributeAccessIssue]
    register_model(name)(build)


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of the registered models that match a shell pattern, sorted; of a family those that it shows."""
    load_plugins()
    names = {*_FACTORIES, *(name for family in _FAMILIES for name in family.listed())}
    return sorted(name for name in names if fnmatchcase(name, pattern))


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    **options: object,
) -> Model:
    """Build a registered model with fresh weights.

    Args:
        name: one of `list_models()`, or any timm model with a head, e.g. "resnet18.xnidr".
        num_classes: number of classes, at least 1; None: 10, or those of the data set that the name has.
        in_channels: channels of the images, at least 1; None: 1, or those of the name's data set, or 3 of timm's.
        image_size: side in pixels, or (height, width); None: 28, or that of the name's data set, or 224 of timm's.
        options: keyword arguments of the model's family; where it takes `routing_options`, also those of its routing,
            with `routing_` before their names. `pretrained=True`, where no such option is the family's own: `name` is
            that of trained weights, see `torchcaps.models.pretrained.find_weights`, and other options must be theirs.

    Raises:
        FileNotFoundError: when there are no weights of that name.
        ValueError: for a name that is not registered (the nearest one is named), or sizes that the model cannot take.
    """
    if options.get("pretrained") is True and not _knows_pretrained(name):
        assert _PRETRAINED, "torchcaps.models registers it"
        given = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
        given["image_size"] = None if image_size is None else _sides(image_size)
        wanted = {key: value for key, value in (given | options).items() if value is not None and key != "pretrained"}
        return _PRETRAINED[0](name, **wanted)
    factory = find_factory(name)
    classes = whole("num_classes", _default(factory, "num_classes", 10) if num_classes is None else num_classes)
    channels = whole("in_channels", _default(factory, "in_channels", 1) if in_channels is None else in_channels)
    sides = _sides(_default(factory, "image_size", 28) if image_size is None else image_size)
    own = _gather_routing_options(factory, options)
    _check_options(name, factory, options, own)
    try:
        model = factory(num_classes=classes, in_channels=channels, image_size=sides, **own)
    except (ArithmeticError, RuntimeError, TypeError) as error:  # of torch's own layers: no such sizes can be
        given = ", ".join(f"{key} {value}" for key, value in options.items())
        raise ValueError(f"model {name!r} cannot be built with {given or 'its defaults'}: {error}") from error
    model.origin = {"name": name, "num_classes": classes, "in_channels": channels, "image_size": sides, **options}
    return model


def create_meta(name: str, **arguments: Any) -> Model:
    """Build a registered model on the meta device: without memory for its weights, and without any that are trained.

    Args:
        name, arguments: as `create_model` takes them; `pretrained` is left out.
    """
    given = {argument: value for argument, value in arguments.items() if argument != "pretrained"}
    with torch.device("meta"):
        return create_model(name, **given)


def _sides(size: object) -> tuple[int, int]:
    """Return (height, width) of a side or of both."""
    both = size if isinstance(size, tuple | list) else (size, size)
    try:
        height, width = (whole("image_size", side) for side in both)
    except ValueError as error:
        raise ValueError(
            f"image_size is {size!r}; it must be a side of at least 1 pixel, or height and width, whole numbers"
        ) from error
    return height, width


def describe_model(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return `origin`, what `create_model` was called with, and all other options of the family with their defaults.

    Options of a routing stand by themselves, `routing_` before their names.
    """
    parameters = inspect.signature(find_factory(origin["name"])).parameters
    defaults = {name: each.default for name, each in parameters.items() if each.default is not each.empty}
    described = {"name": origin["name"], **defaults, **origin}
    if "routing_options" in parameters:
        given = described.pop("routing_options") or {}
        routing = routing_of(ModelConfig(origin["name"].removesuffix(OF_TWIN), described))
        assert routing is not None, origin["name"]
        own = inspect.signature(routing_class(routing)).parameters
        found = {name: each.default for name, each in own.items() if each.default is not each.empty}
        described = {ROUTING + name: value for name, value in (found | given).items()} | described
    return described


def _gather_routing_options(factory: Factory, options: Mapping[str, object]) -> dict[str, object]:
    """Return `options`, with those of the routing in a dictionary of their own where `factory` takes one."""
    accepted = inspect.signature(factory).parameters
    found = [name for name in options if name.startswith(ROUTING) and name not in accepted]
    given = options.get("routing_options") or {}
    if "routing_options" not in accepted or not isinstance(given, dict):
        return dict(options)
    for each in found:
        if (short := each.removeprefix(ROUTING)) in given:
            raise ValueError(f"{each} is {options[each]!r}, but routing_options has {short} {given[short]!r}: give one")
    routing = given | {name.removeprefix(ROUTING): options[name] for name in found}
    own = {name: value for name, value in options.items() if name not in found}
    return own | {"routing_options": routing} if found else own


def _check_options(name: str, factory: Factory, given: Mapping[str, object], own: Mapping[str, object]) -> None:
    """Raise ValueError for the first of the options `own` of a model that it does not have, or that is of another type.

    An error names options of its routing too, which checks these itself; `given` are all that were given.
    """
    known = all(each in inspect.signature(factory).parameters for each in own)
    others = [] if known else [ROUTING + each for each in _routing_options(name, factory, given)]
    check_options(f"model {name!r}", factory, own, others, given=SHAPE)


def _routing_options(name: str, factory: Factory, given: Mapping[str, object]) -> list[str]:
    """Return the names of the options that the routing of a model has; [] where its family takes none."""
    if "routing_options" not in inspect.signature(factory).parameters:
        return []
    routing = routing_of(ModelConfig(name.removesuffix(OF_TWIN), dict(given)))  # pyright: ignore[reportArgumentType]
    return [] if routing is None else list(inspect.signature(routing_class(routing)).parameters)[1:]


def rebuild_model(origin: Mapping[str, Any]) -> Model:
    """Return the model that `origin` describes, to load weights into: no pretrained ones are fetched for it.

    Args:
        origin: `Model.origin`, or what JSON made of it.
    """
    shape: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in origin.items()
        if name != "pretrained"
    }
    accepted = inspect.signature(find_factory(shape["name"])).parameters
    later = {name: shape.pop(name) for name in _ROUTED if name in shape and name not in accepted}
    model = create_model(**shape)
    for name, value in later.items():
        setattr(model, name, value)
    return model


def _knows_pretrained(name: str) -> bool:
    """Return whether `name` is of a family that has an option `pretrained` of its own, as timm's."""
    try:
        return "pretrained" in inspect.signature(find_factory(name)).parameters
    except ValueError:
        return False


def find_factory(name: str) -> Factory:
    """Return the factory of a registered model; ValueError with the nearest name otherwise."""
    if not isinstance(name, str):
        raise TypeError(f"model is {name!r}; it must be a registered name, such as 'capsnet'")
    load_plugins()
    if name in _FACTORIES:
        return _FACTORIES[name]
    for family in _FAMILIES:
        if factory := family.factory(name):
            return factory
    raise unknown("model", name, list_models(), f"`torchcaps list models` shows all; {YOURS}")


def _default(factory: Factory, argument: str, otherwise: int) -> Any:
    """Return the default that `factory` itself gives an argument."""
    parameter = inspect.signature(factory).parameters.get(argument)
    return otherwise if parameter is None or parameter.default is parameter.empty else parameter.default
