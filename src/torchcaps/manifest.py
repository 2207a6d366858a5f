"""What a run holds so that its model answers for a new picture anywhere: `model.json`, and the same object, as JSON, in
the metadata of weights and exports.

    {"model": {"name", every option}, "classes": [names in order], "input": `InputForm`, "score": `ScoreForm`,
     "data": `DataForm`, "smaller": `Smaller`, "revisions": {...}, "versions": {...}, "format": 2}

Whatever is read is checked by type, range and pattern: files of strangers are read, never obeyed. Nothing here imports
torch or numpy, so that an exported network is used without them being asked.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torchcaps.config import SHAPE, ModelConfig, from_plain, to_plain
from torchcaps.forms import MOST, DataForm, InputForm, ScoreForm, check_count, check_size
from torchcaps.names import fits
from torchcaps.revisions import read_older

FORMAT = 2
KEY = "torchcaps"  # of the metadata of a file
Value = bool | int | float | str | None | tuple[bool | int | float | str, ...]  # of an option of a model

CLASSES, DIGESTS = "the names of the classes", "digests of the splits"  # what a model can be used without

LONGEST = 1_000  # characters of a name or a text
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")  # of a registered model: no path, no address
_KEYWORD = re.compile(r"[a-z][a-z0-9_]{0,63}")
_LARGEST = {"iterations": 1_000}  # of options that cost more than one step each; others may be `forms.MOST`


@dataclass(frozen=True)
class Smaller:
    """What was done to a trained network to make it smaller, see `torchcaps.models.smaller`."""

    pruned: tuple[int, ...] = ()  #: types of primary capsules and children of each layer that are left; () all
    folded: bool = False  #: whether constant coefficients stand in the weights


@dataclass(frozen=True)
class Manifest:
    """All that is needed to use a trained model; what an older run did not write down is empty or None.

    Raises:
        ValueError: for values that no model can have, and for parts that contradict each other.
    """

    model: dict[str, Any]  #: what `create_model` is called with, defaults included
    classes: tuple[str, ...] = ()  #: names, in the order of the scores
    input: InputForm | None = None
    score: ScoreForm | None = None
    data: DataForm = field(default_factory=DataForm)
    smaller: Smaller = field(default_factory=Smaller)
    revisions: dict[str, int] = field(default_factory=dict)  #: above 1, of what the model computes
    versions: dict[str, str] = field(default_factory=dict)  #: of the libraries that it was trained with
    format: int = FORMAT

    def __post_init__(self) -> None:
        check_model(self.model)
        if twice := [name for name, count in Counter(self.classes).items() if count > 1]:
            raise ValueError(
                f"two classes are called {twice[0][:80]!r}: rename one of them, each needs a name of its own"
            )
        for what, texts in (("classes", self.classes), ("versions", (*self.versions, *self.versions.values()))):
            if any(len(text) > LONGEST for text in texts):
                raise ValueError(f"{what} holds a text of more than {LONGEST} characters")
        count = self.model.get("num_classes")
        if self.classes and count is not None and len(self.classes) != count:
            raise ValueError(f"classes has {len(self.classes)} names, but the model has {count} classes")
        if self.score is not None and isinstance(count, int) and (self.score.shown or 1) > count:
            raise ValueError(f"score.shown is {self.score.shown}, but the model has {count} classes")
        if self.input is not None:
            if absent := [name for name in SHAPE if name not in self.model]:
                raise ValueError(f"it does not say {', '.join(absent)} of its model")
            for name, value in (("in_channels", self.input.channels), ("image_size", self.input.image_size)):
                if self.model.get(name, value) != value:
                    raise ValueError(f"the model takes {name} {self.model[name]}, but input gives {value}")

    @property
    def name(self) -> str:
        return str(self.model["name"])

    @property
    def origin(self) -> dict[str, Any]:
        """Return what `create_model` is called with today to compute what the run computed.

        Raises:
            ValueError: when that is no longer to be had; names the revision, see `torchcaps.revisions`.
        """
        options = {key: value for key, value in self.model.items() if key not in ("name", *SHAPE)}
        return {**self.model, **read_older(ModelConfig(self.name, options), self.revisions)}

    @property
    def missing(self) -> list[str]:
        """Return what an older run did not write down, in words."""
        dataset = self.input is not None and self.input.standardise == "dataset" and not self.input.mean
        there = {
            CLASSES: bool(self.classes),
            "how a picture becomes input": self.input is not None,
            "mean and std of the training images": not dataset,
            "what the scores are": self.score is not None,
            DIGESTS: bool(self.data.train.sha256),
        }
        return [what for what, known in there.items() if not known]

    def to_json(self) -> str:
        """Return the manifest as text, for the metadata of a file; `from_json` reads it."""
        return json.dumps(self.to_plain())

    def to_plain(self) -> dict[str, Any]:
        """Return the manifest as JSON can hold it, in the newest format, whatever it was read from; `read` takes it."""
        return to_plain(replace(self, format=FORMAT))


def check_model(model: Mapping[str, Any]) -> None:
    """Raise ValueError unless `model` may be handed to `create_model`: a plain name, and plain options."""
    name = model.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"name of the model is {str(name)[:80]!r}; it must be one of `torchcaps list models`")
    for key, value in model.items():
        if not _KEYWORD.fullmatch(key):
            raise ValueError(f"the model has an option {key[:80]!r}, which no model has")
        if not fits(value, Value):
            raise ValueError(f"{key} is {str(value)[:80]}; it must be a number, a text, None, or a list of them")
        if isinstance(value, tuple) and len(value) > LONGEST:
            raise ValueError(f"{key} of the model has {len(value):,} values; it may have {LONGEST:,}")
        for each in value if isinstance(value, tuple) else (value,):
            most = math.inf if key in SHAPE or key.endswith("seed") else _LARGEST.get(key, MOST)
            if type(each) is int and abs(each) > most:
                raise ValueError(f"{key} of the model is {str(each)[:80]}; it must be at most {most}")
            if isinstance(each, str) and len(each) > LONGEST:
                raise ValueError(f"{key} of the model has {len(each)} characters")
            if isinstance(each, float) and not math.isfinite(each):
                raise ValueError(f"{key} of the model is {value}; it must be finite")
    for what in ("num_classes", "in_channels"):
        if what in model:
            check_count(what, model[what])
    if "image_size" in model:
        check_size("image_size", model["image_size"])


def from_json(text: str) -> Manifest:
    """Return the manifest in the metadata of a file; raises ValueError as `read`."""
    try:
        plain = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(plain, dict):
        raise ValueError(f"it holds a {type(plain).__name__}, not an object")
    return read(plain)


def read(plain: Mapping[str, Any]) -> Manifest:
    """Return the manifest that `plain`, read from JSON, describes.

    Of format 1, which is a flat object of what `create_model` was called with, there is the model alone.

    Raises:
        ValueError: for a later format, for names that it does not have, and for values that cannot be.
    """
    written = plain.get("format", 1)
    if written == 1 and not isinstance(plain.get("model"), dict):
        model = {name: value for name, value in plain.items() if name not in ("revisions", "format")}
        revisions = plain.get("revisions", {})
        return from_plain(Manifest, {"model": model, "revisions": revisions, "format": 1})
    if written != FORMAT:
        raise ValueError(f"its format is {str(written)[:80]!r}, and this torchcaps reads 1 and {FORMAT}: update it")
    if not isinstance(plain.get("model"), dict):
        raise ValueError("it does not say what its model is")
    return from_plain(Manifest, dict(plain))
