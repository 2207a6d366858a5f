"""Revisions: what was changed in numbers since the first lines of results were written.

A line of results is found by a hash of its configuration, which cannot see changed code. So whatever changes what a
configuration computes raises the revision of the part that it changed: an entry of `REVISIONS`. Revisions above 1 enter
the hash, the line and model.json; results of corrected code are never mistaken for those of the old. Frozen curves
(`tests/frozen.py`) notice a change that raises none.

Nothing here imports torch, so that listings answer at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from torchcaps.config import EXTERNAL, Config, ModelConfig, Option
from torchcaps.data.catalogue import CATALOGUE
from torchcaps.data.facts import epoch_images
from torchcaps.names import LINEAR, OF_TWIN

Kind = Literal["model", "routing", "transform", "loss", "phase", "data"]

_ROUTINGS = {  # of models whose options do not name one; a test compares them with what the built models hold
    "capsnet": "dynamic",
    "fm-capsnet": "fm",
    "discriminative-capsnet": "discriminative",
    "fm-resnet-*": "fm",
    "attention-*": "inverted-attention",
    "dynamic-*": "dynamic",
    "em-*": "em",
    "capnet-6-dynamic": "dynamic",
    "capnet-6-em": "em",
    "efficient-capsnet-*": "self-attention",
    "self-routing-*": "self-routing",
    "variational-bayes-*": "variational-bayes",
}


@dataclass(frozen=True)
class Revision:
    """One change of what configurations compute."""

    kind: Kind
    name: str  #: of a routing, loss, ... as it is registered; of models that share code a shell pattern
    number: int  #: from 2 upwards
    why: str  #: what was wrong, in a sentence, as errors show it
    concerns: Callable[[Config], bool]  #: whether a config computes something else than before
    older: Mapping[str, Option] | None = None  #: options of the model that compute what was computed before; None: lost
    training: bool = False  #: only training changed: weights of older runs mean what they meant

    @property
    def key(self) -> str:
        """Return what the number is recorded under, e.g. "routing dynamic"."""
        return f"{self.kind} {self.name}"


def routing_of(model: ModelConfig) -> str | None:
    """Return the registered name of the routing in a model; None for a network without one."""
    options = model.options
    if model.name.endswith(OF_TWIN):
        return None
    if "routing" in options:
        return str(options["routing"])
    base, _, head = model.name.rpartition(".")
    if base:
        return None if head == LINEAR else head
    if options.get("activations") and model.name.startswith("attention-"):
        return "inverted-attention-c"
    return next((routing for pattern, routing in _ROUTINGS.items() if fnmatchcase(model.name, pattern)), None)


def with_model(*patterns: str) -> Callable[[Config], bool]:
    """Return whether the model of a config has a name that one of the shell `patterns` matches."""
    return lambda config: any(fnmatchcase(config.model.name, pattern) for pattern in patterns)


def with_data(*patterns: str) -> Callable[[Config], bool]:
    """Return whether the training images of a config are of a set whose name one of the shell `patterns` matches."""
    return lambda config: any(fnmatchcase(config.data.name, pattern) for pattern in patterns)


def _ascends(config: Config) -> bool:
    """Return whether the model of a config has coefficients that are learnt by a goal of their own."""
    return routing_of(config.model) == "discriminative" and not config.model.options.get("fixed", False)


_PREACTIVATED: dict[str, Option] = {"activated_stem": False, "activated_projection": True}


def _preactivated_otherwise(config: Config) -> bool:
    """Return whether the residual network of FM agreement is another than the one of revision 1."""
    options = config.model.options
    return any(options.get(name, not value) != value for name, value in _PREACTIVATED.items())


def _gains_in_many_dimensions(config: Config) -> bool:
    """Return whether kernels alone decay, beside a batch norm of votes whose gains have three dimensions."""
    each = config.model.options.get("batch_norm", "pair" if config.model.name == "fm-resnet-smallnorb" else "element")
    return config.optimiser.decay == "kernels" and each in ("child", "pair")


def _by_element(config: Config) -> bool:
    """Return whether a network of capsules has feedback whose generators are grouped by the elements of a pose."""
    options = config.model.options
    grouped = options.get("groups", "pose") == "pose" and options.get("generator", "capsules") == "capsules"
    return grouped and with_model("encapnet-6-*-feedback", "encapnet-v*-feedback")(config)


_SLOW = (
    "fm-resnet-*",
    "cnn-affnist",
    "efficient-capsnet-*",
)  # whose batch norm has Keras' momentum, a tenth of torch's
_WITHOUT_NORM = (
    "capsnet",
    "discriminative-*",
    *(f"{a}-{b}-*" for a in ("attention", "dynamic") for b in ("simple", "diverse")),
)


def _norm_momentum(model: ModelConfig) -> float | None:
    """Return the momentum of the slowest batch norm in a model, by its name; None without one."""
    if any(fnmatchcase(model.name, pattern) for pattern in _SLOW):
        return 0.01
    without = any(fnmatchcase(model.name, pattern) for pattern in _WITHOUT_NORM)
    twin = model.name.endswith(OF_TWIN)
    return None if without and not twin and routing_of(model) != "fm" else 0.1


def _few_steps(config: Config) -> bool:
    """Return whether a run is too short for running statistics of batch norm; where the data are the user's own, it
    may be.
    """
    momentum = _norm_momentum(config.model)
    if momentum is None:
        return False
    if config.data.name == EXTERNAL:
        return True
    images = epoch_images(config.data)
    images = min(images, config.data.limit or images)
    steps = config.epochs * (images * (1 - config.data.validation) // config.batch_size)
    return steps * momentum < 10


def _agrees_by_default(routing: str) -> Callable[[Config], bool]:
    """Return whether the model of a config agrees by `routing` with its own default; with R = 1 nothing agrees."""

    def concerns(config: Config) -> bool:
        model = config.model
        changed = not model.name.startswith("attention-") and "routing_scaled" not in model.options
        return changed and routing_of(model) == routing and model.options.get("iterations") != 1

    return concerns


_OTHERWISE_PLACED: dict[str, Option] = {"stem_padding": 2, "placement": "hinton"}


def _placed_as_released(config: Config) -> bool:
    """Return whether a network of variational Bayes is another than the one of revision 1."""
    options = config.model.options
    return any(options.get(name) != value for name, value in _OTHERWISE_PLACED.items())


def _layer_normed(name: str) -> Callable[[Config], bool]:
    """Return whether a config has a model of this name whose class capsules are layer-normed."""
    return lambda config: with_model(name)(config) and str(routing_of(config.model)).startswith("inverted-attention")


def _passes_alike(config: Config) -> bool:
    """Return whether a run goes through a stream of composed images more than once, in epochs that end with it; where
    the number of base images is not known, it may.
    """
    entry, given = CATALOGUE.get(config.data.name), config.data.compose
    if config.epochs < 2 or entry is None or entry.compose is None:
        return False
    preset = entry.compose
    base = CATALOGUE.get(given.base or preset.base or "")
    per_image = preset.per_image if given.per_image is None else given.per_image
    if base is None or not base.train or not per_image:
        return True
    total = per_image * (base.train - round(config.data.validation * base.train))
    asked = config.data.limit or (preset.epoch if given.epoch is None else given.epoch) or total
    epoch = min(asked, total)
    return total % epoch == 0 and config.epochs * epoch > total


def _holds_out_pairs(config: Config) -> bool:
    """Return whether training images of smallNORB, or of what is composed of them, are held out."""
    base = config.data.compose.base or ""
    return config.data.validation > 0 and (with_data("smallnorb*")(config) or base.startswith("smallnorb"))


def _may_lack_images(config: Config) -> bool:
    """Return whether a class may have fewer images than its part of the share of the training images that is used."""
    if config.data.fraction == 1 or with_data("cifar*", "fashion-mnist", "smallnorb*")(config):
        return False
    return config.data.fraction > 0.6 or not with_data("digits", "mnist", "svhn", "affnist")(config)


_EQ_2 = "agreements were divided by the root of the pose size, which Eq. 2 of Tsai et al. does not do"


REVISIONS: tuple[Revision, ...] = (
    Revision(
        "routing",
        "discriminative",
        2,
        "lambda stood beside the mean over the batch where Eq. 12 has it beside the sum",
        lambda config: _ascends(config) and config.model.options.get("penalty_weight") != 0,
        training=True,
    ),
    Revision(
        "phase",
        "coefficients",
        2,
        "the rate of the coefficients stayed constant where that of the weights is scheduled",
        lambda config: _ascends(config) and config.schedule.name != "constant",
        training=True,
    ),
    *(
        Revision(
            "model",
            name,
            2,
            "the stem's batch norm and ReLU come before the first block splits, and a projection sees its raw input",
            lambda config, name=name: with_model(name)(config) and _preactivated_otherwise(config),
            _PREACTIVATED,
        )
        for name in ("fm-resnet-*", "cnn-affnist")
    ),
    Revision(
        "phase",
        "weights",
        2,
        "gains of three dimensions decayed with the kernels",
        _gains_in_many_dimensions,
        training=True,
    ),
    *(
        Revision("routing", name, 2, _EQ_2, _agrees_by_default(name), {"routing_scaled": True})
        for name in ("inverted-attention", "inverted-attention-c")
    ),
    Revision(
        "phase",
        "evaluation",
        2,
        "short runs were evaluated with running statistics of batch norm that still were those of its start",
        _few_steps,
        training=True,
    ),
    Revision(
        "model",
        "encapnet-*-feedback",
        2,
        "the groups of the feedback's generators were runs of channels, which are neither elements of a pose nor "
        "capsules",
        _by_element,
        training=True,
    ),
    Revision(
        "model",
        "dynamic-diverse-*",
        2,
        "the linear head read squashed poses as they are, at the rate of those that layer norm makes long",
        lambda config: (
            with_model("dynamic-diverse-*")(config)
            and config.model.options.get("head", "linear") == "linear"
            and config.model.options.get("gain") is None
        ),
        {"gain": 1.0},
    ),
    Revision(
        "model",
        "variational-bayes-*",
        2,
        "the stem was padded, and coordinates were ten times those of the released code",
        lambda config: with_model("variational-bayes-*")(config) and _placed_as_released(config),
        _OTHERWISE_PLACED,
    ),
    *(
        Revision("model", name, 2, "its first weights were not the released ones", with_model(name), training=True)
        for name in ("self-routing-*", "resnet20-*")
    ),
    Revision(
        "model",
        "efficient-capsnet-*",
        2,
        "the first weights of its decoder were not Keras'",
        lambda config: with_model("efficient-capsnet-*")(config) and config.model.options.get("decoder", True) is True,
        training=True,
    ),
    Revision(
        "data",
        "byerly",
        2,
        "shifts were rounded to fewer pixels, too many of the squeezed images stood one column further, and turns were "
        "about another point",
        lambda config: config.data.augment.byerly,
        training=True,
    ),
    *(
        Revision(
            "model",
            name,
            number,
            "scores were the lengths of layer-normed class capsules, which are all the same",
            _layer_normed(name),
        )
        for name, number in (("capsnet", 2), ("fm-resnet-*", 3))
    ),
    Revision(
        "data",
        "affine-digits",
        2,
        "narrow digits were moved over the middle of the image alone, not to all places where all ink is inside",
        lambda config: "affine-digits" in (config.data.name, config.data.test),
        training=True,
    ),
    Revision(
        "data",
        "fraction",
        2,
        "where a class had too few images for its part of the share, the share was not filled from the others",
        _may_lack_images,
        training=True,
    ),
    Revision(
        "data",
        "smallnorb",
        2,
        "of a pair of cameras one picture was trained on and the other in the validation split",
        _holds_out_pairs,
        training=True,
    ),
    Revision(
        "data",
        "streams",
        2,
        "each pass through a stream whose epochs end with it had the batches of the first, and left over the same",
        _passes_alike,
        training=True,
    ),
)


def revision(kind: Kind, name: str) -> int:
    """Return the present revision, 1 where nothing was changed."""
    return max((each.number for each in REVISIONS if (each.kind, each.name) == (kind, name)), default=1)


def revisions_of(config: Config, trained: bool = True) -> dict[str, int]:
    """Return the revisions above 1 of the parts of `config`, by their keys, sorted: what enters hash, line and
    model.json.

    Those of training alone are left out of what is not `trained`, such as a count of parameters.
    """
    found: dict[str, int] = {}
    for each in REVISIONS:
        if (trained or not each.training) and each.concerns(config):
            found[each.key] = max(found.get(each.key, 1), each.number)
    return dict(sorted(found.items()))


def read_older(model: ModelConfig, recorded: Mapping[str, int]) -> dict[str, Option]:
    """Return the options that make of `model`, which a run wrote down, what that run computed.

    Args:
        model: name and options, as the run has them.
        recorded: the revisions that the run wrote down; none in runs from before there were any.

    Raises:
        ValueError: when what the run computed is no longer to be had, or when the run is of a later version; names the
            revision and what it changed.
    """
    options: dict[str, Option] = dict(model.options)
    config = Config(model=model)
    for key, number in recorded.items():
        kind, _, name = key.partition(" ")
        if number > (known := max((each.number for each in REVISIONS if each.key == key), default=1)):
            made = f"this run was made with revision {number} of {kind} {name!r}"
            raise ValueError(f"{made}, and this torchcaps has {known}: update it")
    for each in sorted(REVISIONS, key=lambda entry: -entry.number):
        if each.training or each.number <= recorded.get(each.key, 1) or not each.concerns(config):
            continue
        if each.older is None:
            raise ValueError(
                f"this run was made with revision {each.number - 1} of {each.kind} {each.name!r}, which is no longer "
                f"to be had (since revision {each.number}: {each.why}): train it again"
            )
        options = {**each.older, **options}
    return options


def check_same(recorded: Mapping[str, Any], config: Config) -> None:
    """Raise ValueError unless a run that wrote down the revisions `recorded` goes on as it began.

    The message names what was changed since.
    """
    now = revisions_of(config)
    for key in sorted({*recorded, *now}):
        if (before := recorded.get(key, 1)) != (after := now.get(key, 1)):
            raise ValueError(
                f"it was begun with revision {before} of {key!r}, which is {after} now: its steps would not go on as "
                "they began; start a new run"
            )
