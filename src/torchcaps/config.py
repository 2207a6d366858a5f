"""Frozen configurations: a recipe is one complete `Config`, and the flags of the command line are derived from it.

Nothing here imports torch, so that help and listings answer at once.
"""

from __future__ import annotations

import typing
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from torchcaps.names import describe_type, fits

OPTION = "model.options."  # what the name of a model's option begins with, as the field of a config
EXTERNAL = "external"  # name of a model, or of data, that was handed to `fit` in Python
Option = bool | int | float | str | tuple[int, ...] | None
C = TypeVar("C")


class UnknownField(ValueError):
    """Says that a record has a field which this version does not have: a later one may."""


class Checked:
    """A part of a config, whose values are checked and converted as those of flags and files are.

    A text becomes the path, a list the tuple, and a dictionary the part that it stands for.

    Raises:
        ValueError: for a value of another type.
    """

    def __post_init__(self) -> None:
        for name, kind in _kinds(type(self)).items():
            value = getattr(self, name)
            if (restored := _restore(name, kind, value)) is not value:
                object.__setattr__(self, name, restored)


@dataclass(frozen=True)
class AugmentConfig(Checked):
    """Random changes of the training images, drawn anew for each image, applied to whole batches on the device."""

    crop: int = 0  #: pixels of zero padding on each side before a random crop back to the image size
    flip: bool = False  #: mirror left to right with probability one half
    shift: int = 0  #: translate by a whole number of pixels, uniform in [-shift, shift] along each axis, zeros enter
    rotate: float = 0.0  #: largest rotation, degrees, uniform in [-rotate, rotate]
    scale: float = 0.0  #: largest relative change of size, uniform in [1 - scale, 1 + scale]
    shear: float = 0.0  #: largest shear, degrees, uniform in [-shear, shear]
    brightness: float = 0.0  #: largest relative change of brightness: a factor uniform in [1 - it, 1 + it]
    contrast: float = 0.0  #: the same of contrast, about the mean grey of the image
    saturation: float = 0.0  #: the same of saturation; of colour images only
    hue: float = 0.0  #: largest turn of hue, in circles, uniform in [-hue, hue], at most 0.5; of colour images only
    byerly: bool = False  #: digits on black: turn, shift, squeeze and cut as Byerly et al. 2020, before all else
    alternate: bool = False  #: flip: mirror an image in every other epoch, after a first one by chance


@dataclass(frozen=True)
class ComposeConfig(Checked):
    """How images are composed of a base set's; each named set says what None stands for (`torchcaps data list`)."""

    #: set that is composed from, e.g. mnist, fashion-mnist, digits, npz:PATH; below 28 pixels it is enlarged
    base: str | None = None
    per_image: int | None = None  #: composed images for each base image; with that the stream ends
    objects: int | None = None  #: overlapped objects, each of another class
    single: int | None = None  #: one image in so many shows one object alone; 0: none does
    shift: int | None = None  #: each object moves by -shift .. shift whole pixels along each axis
    size: int | None = None  #: side in pixels; 0: as large as the shifts need
    #: of overlapped pixels: sum cut at white, largest, mean, or sum (then above 1)
    overlay: Literal["clip", "max", "mean", "sum"] | None = None
    channels: int | None = None  #: 3 repeats grey images; 0: as the base has
    epoch: int | None = None  #: images of the training stream that are one epoch; 0: all
    held: int | None = None  #: images of the validation stream, and of the test stream; 0: all
    seed: int | None = None  #: of what is drawn in all three streams


@dataclass(frozen=True)
class DataConfig(Checked):
    """Which images, how they are split, and what is done to them."""

    name: str = "digits"  #: a name from `torchcaps list data`, `npz:PATH`, `folder:PATH` or `list:FILE`
    root: Path | None = None  #: where data sets lie; else $TORCHCAPS_DATA, else the user's cache folder
    download: bool = False  #: fetch what is missing (torchvision's sets)
    #: resize to this many pixels a side on loading, or to height and width; None keeps the stored size
    image_size: int | tuple[int, int] | None = None
    #: image_size, of other proportions: change them, cut to the middle, or put `ground` around
    fit: Literal["stretch", "crop", "pad"] = "stretch"
    ground: str = "white"  #: folder, list: colour behind what is transparent, and around what is padded; or #rrggbb
    colour: Literal["auto", "grey", "rgb"] = "auto"  #: folder, list: auto takes rgb where a training picture has colour
    order: Literal["auto", "nhwc", "nchw"] = "auto"  #: npz: axes of arrays of four; auto refuses what may be either
    pad: int | None = None  #: put black around each image, up to this many pixels a side, in place of resizing it
    validation: float = 0.1  #: share of the training split held out to select the model on; 0 trains on all of it
    split_seed: int = 0  #: seed of the split, apart from the seed of the run
    #: zero mean and unit variance: of each image, of each channel of it, or of each over the training split
    standardise: Standardise = "none"
    standardise_first: bool = False  #: standardise whole images, before they move: zeros that enter are the mean
    std: tuple[float, ...] = ()  #: standardise dataset: of each channel, pixels in [0, 1]; else the training split's
    crop: int | None = None  #: cut to this many pixels a side: anywhere in training, from the middle otherwise
    views: Literal[1, 5, 10] = 1  #: crops that a test averages: the middle; the corners too; all mirrored too
    enlarge: int | None = None  #: pixels a side that each batch is enlarged to, last: images are held and moved small
    skip_unreadable: bool = False  #: folder, list: leave out images that cannot be read, and name them
    copies: int = 32  #: affnist: how many of the 32 published versions of each digit are read
    test: str | None = None  #: the set whose test split is used in place of this one's
    limit: int | None = None  #: images of each split that are used at most, a fixed sample of it: for trials
    fraction: float = 1.0  #: share of the training images that is used, of each class alike; by `split_seed`
    compose: ComposeConfig = field(default_factory=ComposeConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    balance: bool = False  #: training: each class is drawn as often as any other, rare images more than once

    @property
    def sides(self) -> tuple[int, int] | None:
        """Return height and width that images are resized to, in pixels; None where they stay as they are stored."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size


SHAPE = ("num_classes", "in_channels", "image_size")  # arguments of a model that the data give


@dataclass(frozen=True)
class ModelConfig(Checked):
    """A registered model and the keyword arguments of its family that differ from their defaults."""

    name: str = "capsnet"  #: a name from `torchcaps list models`
    options: dict[str, Option] = field(default_factory=dict)  #: keyword arguments, e.g. `channels 64 blocks 8,8,8`

    def check_shape(self) -> None:
        """Raise ValueError where an option is what the data say."""
        if found := [name for name in SHAPE if name in self.options]:
            raise ValueError(f"model.options has {found[0]}, which the data say: change these (data.image_size, ...)")


Standardise = Literal["none", "image", "channel", "dataset"]
ScoreKind = Literal["length", "logit", "probability"]  # what a score of a class is: in [0, 1), any number, in [0, 1]
LossName = Literal[
    "margin", "spread", "squared-hinge", "cross-entropy", "normalised-cross-entropy", "binary-cross-entropy"
]


@dataclass(frozen=True)
class LossConfig(Checked):
    """The loss: its name, and what is added to the loss of the scores."""

    name: LossName = "margin"
    average: bool = False  #: margin, spread: divide the sum over the classes by their number, as some code does
    spread_margin: tuple[float, float] = (0.2, 0.9)  #: spread: the margin of the first and of the last step
    smoothing: float = 0.0  #: cross-entropies: share of each target that is spread over all classes
    reconstruction: float = 0.0  #: weight of the squared reconstruction error, summed over the pixels of an image
    penalty: float | None = None  #: weight of what a model adds to the loss (lambda of feedback); None: the model's own
    penalty_warmup: float = 0.0  #: share of the run in which that weight rises from 0, evenly; 0: it is constant
    #: score (binary-cross-entropy: probability) above which a class is shown, where images differ in how many
    threshold: float = 0.5
    #: of training: balanced (a class counts by the inverse of its images), or a number a class
    class_weights: Literal["none", "balanced"] | tuple[float, ...] = "none"


@dataclass(frozen=True)
class OptimiserConfig(Checked):
    """The optimiser of the weights, and its settings as in `torch.optim`."""

    name: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"  #: of the weights
    lr: float = 1e-3  #: the largest rate of the run
    weight_decay: float = 0.0  #: times each weight is added to its gradient; adamw: times the rate is taken off it
    #: what decays: all parameters, or kernels: weights of two dimensions or more, but no gains or biases
    decay: Literal["all", "kernels"] = "all"
    momentum: float = 0.9  #: of SGD and RMSProp
    nesterov: bool = False  #: SGD: the gradient is taken to be that after the momentum's step
    eps: float = 1e-8  #: of all but SGD, added to the root of the squared gradients' mean


@dataclass(frozen=True)
class ScheduleConfig(Checked):
    """Learning rate over the run; the rate of `OptimiserConfig` is the largest one, as is that of coefficients."""

    #: how the rate goes, batch by batch
    name: Literal["constant", "step", "cosine", "one-cycle", "triangular2", "exponential"] = "constant"
    milestones: tuple[int, ...] = ()  #: step: epochs after which the rate is multiplied by `gamma`
    gamma: float = 0.1  #: step: factor at each milestone; exponential: factor every `step_size` batches
    step_size: int = 2000  #: triangular2: half a cycle, exponential: its period; in batches
    halves: Literal["peaks", "dips"] = "peaks"  #: triangular2, each cycle: its peak, or its dip under the largest rate
    continuous: bool = False  #: exponential: the rate falls a little at each step, in place of once a period
    lr_min: float = 0.0  #: cosine, triangular2, exponential: the smallest rate
    warmup: float = 0.3  #: one-cycle: share of the run in which the rate rises


@dataclass(frozen=True)
class CoefficientConfig(Checked):
    """The second phase of routing towards discriminative quality; it runs only where a routing has an objective."""

    lr: float = 1e-3  #: the largest step of gradient ascent: it rises and falls as the rate of the weights does
    steps: int = 1  #: routing steps (n_r) on each batch, after the weight steps
    weight_steps: int = 1  #: weight steps (n_b) on each batch
    reuse_votes: bool = False  #: route by the votes of the weight step: no second pass; one step of each kind only


# Fields of `Config` by which nothing is computed: where a run lies, how often it is saved, what is seen of it.
PLACES = ("changed", "out", "checkpoint_every", "test_curve")


@dataclass(frozen=True)
class Config(Checked):
    """All that determines a run."""

    recipe: str = ""  #: name of the recipe, and of the folders of its runs
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    coefficients: CoefficientConfig = field(default_factory=CoefficientConfig)
    epochs: int = 10  #: passes over the training split
    batch_size: int = 128  #: over all processes together
    head_epochs: int = 0  #: of the epochs, at first: the model's backbone stays as it is, and what stands on it learns
    #: of the weights that are evaluated and kept, decay a step of their mean, e.g. 0.999; 0: the last
    average: float = 0.0
    clip: float | None = None  #: largest norm of the gradient of a phase; None does not clip
    #: auto: bf16 where the machine multiplies in it and it is no slower for the model, else fp32
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    agreement: int = 0  #: images of the training split whose votes are compared with their parents after each epoch
    test_curve: bool = False  #: measure the test split at each epoch's end too: written beside, selects nothing
    #: compile the training step by `torch.compile`, where the machine can; auto: on a GPU, and on a CPU of a depthwise
    #: network
    compile: bool | Literal["auto"] = False
    seed: int = 0  #: of first weights, batches and all else that is drawn
    device: str = "auto"  #: auto, cpu, cuda, mps
    processes: int = 1  #: number of devices; on CPU, of processes
    #: seconds between checkpoints inside an epoch; one is also written at each epoch's end
    checkpoint_every: float = 60.0
    out: Path = Path("runs")  #: folder in which the run's own folder is made
    imports: tuple[str, ...] = ()  #: files of --import, each its name and SHA-256: written by the command line
    changed: tuple[str, ...] = ()  #: what differs from the recipe, as NAME=VALUE: written by the command line
    #: on the validation split, by which the kept weights are selected
    select: Literal["accuracy", "mean-class-accuracy"] = "accuracy"
    start: str = ""  #: whose weights the run began with, NAME and SHA-256: written by --from
    continued: str = ""  #: the finished run that this one goes on from, NAME and SHA-256: written by --resume


def to_plain(config: Any) -> Any:
    """Return a config, or one of its parts, as what JSON can hold: dictionaries, lists, strings, numbers and None."""
    if is_dataclass(config):
        return {each.name: to_plain(getattr(config, each.name)) for each in fields(config)}
    if isinstance(config, tuple):
        return [to_plain(item) for item in config]
    if isinstance(config, dict):
        return {name: to_plain(value) for name, value in config.items()}
    return str(config) if isinstance(config, Path) else config


def from_plain(kind: type[C], plain: dict[str, Any]) -> C:
    """Return the config of type `kind` that `to_plain` wrote; what an older version did not write takes its default.

    Raises:
        ValueError: for a name that `kind` does not have, for one without a default that is not there, and for a
            value that is not of its type.
    """
    types = _kinds(kind)
    if unknown := sorted(set(plain) - set(types)):
        raise UnknownField(f"{kind.__name__} has no {', '.join(unknown)}; it has {', '.join(types)}")
    needed = [
        each.name
        for each in fields(typing.cast(Any, kind))
        if each.default is MISSING and each.default_factory is MISSING
    ]
    if absent := [name for name in needed if name not in plain]:
        raise ValueError(f"{kind.__name__} must have {', '.join(absent)}")
    return kind(**{name: _restore(name, types[name], value) for name, value in plain.items()})


@cache
def _kinds(kind: type) -> dict[str, Any]:
    """Return the types of the fields of a part of a config."""
    return typing.get_type_hints(kind)


def _restore(name: str, kind: Any, value: Any) -> Any:
    part = next((each for each in (kind, *typing.get_args(kind)) if is_dataclass(each)), None)
    if part is not None and isinstance(value, dict):
        return from_plain(typing.cast(type, part), value)
    if part is not None and isinstance(value, list):  # several of them
        value = [from_plain(typing.cast(type, part), each) if isinstance(each, dict) else each for each in value]
    if isinstance(value, dict):
        value = {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
    elif isinstance(value, list):
        value = tuple(value)
    if isinstance(value, str) and Path in (kind, *typing.get_args(kind)):
        value = Path(value)
    if not fits(value, kind):
        raise ValueError(f"{name} is {value!r}; it must be {describe_type(kind)}")
    return value
