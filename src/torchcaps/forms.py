"""The forms in which a run says what its model takes and gives: pictures, scores and data. `manifest.py` keeps them.

Nothing here imports torch or numpy, so that an exported network is used without them being asked.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from torchcaps.config import ScoreKind, Standardise

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
MOST = 65_536  # pixels a side, channels, and classes
_COLOUR = re.compile(r"[A-Za-z]{1,40}|#[0-9A-Fa-f]{3,8}|[a-z]{3}\([0-9.,% ]{1,40}\)")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class InputForm:
    """How a picture becomes what a model takes: brought to `size`, padded, cut, standardised, enlarged, in this order.

    Raises:
        ValueError: for values that no picture can have.
    """

    size: tuple[int, ...]  #: height and width that a picture is brought to
    channels: int
    fit: Literal["stretch", "crop", "pad"] = "stretch"  #: where its proportions are others
    ground: str = "white"  #: colour that what is transparent is laid on, and that is put around what is padded to fit
    pad: int | None = None  #: side of the black square that it is then put in the middle of
    crop: int | None = None  #: side that is cut out then
    views: Literal[1, 5, 10] = 1  #: crops whose scores are averaged
    range: tuple[float, ...] = (0.0, 1.0)  #: what black and white become
    standardise: Standardise = "none"
    standardise_first: bool = False  #: the whole picture, before anything is cut out of it
    mean: tuple[float, ...] = ()  #: of each channel in [0, 1], for standardise dataset; () where it is not known
    std: tuple[float, ...] = ()
    enlarge: int | None = None  #: side that it is enlarged to at last

    def __post_init__(self) -> None:
        check_size("input.size", self.size)
        check_count("input.channels", self.channels)
        for name in ("pad", "crop", "enlarge"):
            if (side := getattr(self, name)) is not None:
                check_count(f"input.{name}", side)
        if self.pad is not None and self.pad < max(self.size):
            raise ValueError(f"input.pad is {self.pad}; it must be at least {max(self.size)}, the larger side")
        if self.crop is not None and self.crop > (largest := self.pad or min(self.size)):
            raise ValueError(f"input.crop is {self.crop}; it must be at most {largest}")
        if self.enlarge is not None and self.enlarge < (smallest := self.crop or self.pad or max(self.size)):
            raise ValueError(f"input.enlarge is {self.enlarge}; it must be at least {smallest}")
        if self.range != (0.0, 1.0):
            raise ValueError(f"input.range is {list(self.range)}; only [0, 1] is known")
        if not _COLOUR.fullmatch(self.ground):
            raise ValueError(f"input.ground is {self.ground[:80]!r}; it must be a colour, such as white or #808080")
        for name in ("mean", "std"):
            values: tuple[float, ...] = getattr(self, name)
            if len(values) not in (0, self.channels) or not all(map(math.isfinite, values)):
                raise ValueError(f"input.{name} is {list(values)}; it must be a number a channel ({self.channels})")
        if min(self.std, default=1.0) <= 0:
            raise ValueError(f"input.std is {list(self.std)}; it must be above 0")

    @property
    def mode(self) -> str | None:
        """Return Pillow's name of the pictures that are taken: L (grey) or RGB; None where only arrays can be given."""
        return {1: "L", 3: "RGB"}.get(self.channels)

    @property
    def image_size(self) -> tuple[int, int]:
        """Return (height, width) of what the model takes."""
        side = self.enlarge or self.crop or self.pad
        return (side, side) if side else (self.size[0], self.size[1])


@dataclass(frozen=True)
class ScoreForm:
    """What the scores of a model are, and how they become probabilities."""

    kind: ScoreKind
    to_probability: Literal["softmax", "share", "sigmoid", "none"]  #: none: as it is, cut to [0, 1]
    threshold: float = 0.5  #: score above which a class is there, where pictures differ in how many they show
    shown: int | None = 1  #: classes that a picture shows; None where pictures differ in it

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise ValueError(f"score.threshold is {self.threshold}; it must be a number")
        if self.shown is not None:
            check_count("score.shown", self.shown)

    @property
    def reading(self) -> str:
        """Return how scores become probabilities, in words."""
        return {
            "softmax": "the softmax of the scores; those of all classes add up to 1",
            "share": "of each score its share of their sum; those of all classes add up to 1",
            "sigmoid": "of each score its sigmoid; each class is judged by itself",
            "none": "each score as it is, and each class judged by itself; scores above 1 are read as 1, and such ones "
            "order the classes and are no probabilities",
        }[self.to_probability]


@dataclass(frozen=True)
class Digest:
    """Which images a split holds, whatever they are called and wherever they lie."""

    sha256: str = ""  #: "" where it is not known, and of no images
    images: int = 0
    of: str = ""  #: what was hashed: files, paths and sizes, arrays, or a stream
    #: SHA-256 of the order that files are in, by which batches are drawn; "" where it is not known, and of what is
    #: hashed in its order. The same images in two orders are equal.
    order: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for name in ("sha256", "order"):
            value: str = getattr(self, name)
            if value and not _HEX.fullmatch(value):
                raise ValueError(f"{name} is {value[:80]!r}; it must be 64 digits of base 16")

    def goes_on(self, before: Digest) -> bool:
        """Return whether a run that began with the images `before` goes on with these: the same, and as far as both
        say it in the same order.
        """
        known = bool(self.order and before.order)
        return self == before and (not known or self.order == before.order)


@dataclass(frozen=True)
class DataForm:
    """The data that a model was trained and selected on."""

    name: str = ""  #: of a set; of `folder:PATH` and `npz:PATH` without the folders above
    train: Digest = field(default_factory=Digest)
    validation: Digest = field(default_factory=Digest)
    test: Digest = field(default_factory=Digest)


def check_count(what: str, value: Any) -> None:
    """Raise ValueError, which names `what`, unless `value` is a whole number of 1 .. `MOST`."""
    if type(value) is not int or not 1 <= value <= MOST:
        raise ValueError(f"{what} is {str(value)[:80]!r}; it must be a whole number, 1 .. {MOST}")


def check_size(what: str, value: Any) -> None:
    """Raise ValueError, which names `what`, unless `value` is height and width."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise ValueError(f"{what} is {str(value)[:80]}; it must be height and width")
    for side in value:
        check_count(what, side)
