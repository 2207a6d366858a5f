"""Images that are handed over in Python: tensors, a Dataset, or DataLoaders; each becomes the sources of a `Data`.

Tensors and Datasets are split, shuffled, changed and standardised as any data are. A DataLoader gives the batches
itself, in its own order and as it prepares them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from torchcaps.config import AugmentConfig, DataConfig
from torchcaps.data.drawing import generators_kept, seed_generators
from torchcaps.data.folder import TEST_SEED, TEST_SHARE
from torchcaps.data.images import Images, Source, Splits, Stored, cast_labels, check_labels, shown
from torchcaps.data.items import Floats, Items, to_image
from torchcaps.data.load import Data, assemble
from torchcaps.data.loaders import Loaded, read_batch
from torchcaps.data.notes import some
from torchcaps.data.splits import ITEMS, mix, strata, stratified

NAMES = ("train", "validation", "test")
KINDS = "a pair of tensors (images, labels), a Dataset, or a DataLoader"


def is_loader(given: object) -> bool:
    """Return whether `given`, as `fit` takes data, holds a DataLoader."""
    return any(isinstance(each, DataLoader) for each in (given.values() if isinstance(given, Mapping) else [given]))


def holds_pictures(source: Source) -> bool:
    """Return whether images of `source` are of 0 .. 255, so that another picture can be made into input as they are."""
    if isinstance(source, Loaded):
        return False
    return not source.fetch(torch.zeros(min(1, len(source)), dtype=torch.int64)).is_floating_point()


def given_data(given: object, config: DataConfig, device: torch.device | str = "cpu") -> Data:
    """Return the `Data` of what was handed over: one of `KINDS`, or a dictionary of them by "train", "validation",
    "test".

    Of one alone, and where "test" is not there, a stratified fifth is the test split, always the same; the validation
    split is held out as `load_data` does. A DataLoader cannot be split: it needs its "test" beside it.

    Args:
        given: images are uint8, or floats, which are taken as they are; [n, c, h, w] or [n, h, w] as tensors. Labels
            are numbers of classes, or sets of them as rows of 0 and 1.
        config: how they are split and changed.
        device: that they are moved to.

    Raises:
        ValueError: for other kinds, for images or labels that cannot be read, for Datasets that say different classes,
            and for changes that none of them takes.
    """
    parts = dict(given) if isinstance(given, Mapping) else {"train": given}
    if wrong := sorted(set(map(str, parts)) - set(NAMES)):
        raise ValueError(f"data has a split {wrong[0]!r}; splits are called {', '.join(NAMES)}")
    if "train" not in parts:
        raise ValueError("data has no 'train', which a run learns from")
    with generators_kept():
        read = {name: _read(name, part) for name, part in parts.items()}
    for name, part in read.items():
        if part.floats != read["train"].floats:
            raise ValueError(
                f"data {name} and data train are not both uint8 or both floats, which would be other images"
            )
    classes = _classes(parts, read)
    sources = {name: each.source(classes) for name, each in read.items()}
    train = sources["train"]
    if any(isinstance(each, Loaded) for each in sources.values()):
        return _of_loaders(sources, config, device)
    assert isinstance(train, Stored)
    if "test" not in sources:
        kept, test = stratified(strata(train.labels), round(TEST_SHARE * len(train)), TEST_SEED, spare=True)
        sources["test"], train = train.subset(test), train.subset(kept)
    if any(not isinstance(each, Images) for each in sources.values()):
        _check_taken_as_is(config, whole=False)
    return assemble(Splits(train, sources["test"], sources.get("validation")), config, device)


@dataclass(frozen=True)
class _Read:
    """A part of what was given, before the names of all classes are known."""

    labels: Tensor  # int64 [n], or uint8 [n, classes]
    shape: tuple[int, int, int]
    floats: bool  # whether the images are
    pixels: Tensor | None = None
    dataset: Dataset[Any] | None = None
    loader: DataLoader[Any] | None = None

    def source(self, classes: tuple[str, ...]) -> Source:
        labels = self.labels
        if self.loader is not None:
            check_labels(labels, classes, len(labels))
            return Loaded(self.loader, len(labels), classes, self.shape, shown(labels))
        if self.dataset is not None:
            dtype = torch.float32 if self.floats else torch.uint8
            return Items(self.dataset, torch.arange(len(labels)), labels, classes, self.shape, dtype)
        assert self.pixels is not None
        kind = Images if self.pixels.dtype == torch.uint8 else Floats
        return kind(self.pixels, labels, classes)


def _read(name: str, part: object) -> _Read:
    if isinstance(part, TensorDataset) and len(part.tensors) == 2:
        part = part.tensors
    if isinstance(part, DataLoader):
        return _read_loader(name, part)
    if isinstance(part, tuple | list) and len(part) == 2 and all(isinstance(each, Tensor) for each in part):
        images, labels = cast(tuple[Tensor, Tensor], tuple(part))
        return _read_tensors(name, images, labels)
    if isinstance(part, IterableDataset):
        raise ValueError(
            f"data {name} is an IterableDataset, which has no items to choose from: put it into a DataLoader"
        )
    if isinstance(part, Dataset) or (hasattr(part, "__getitem__") and hasattr(part, "__len__")):
        return _read_items(name, cast(Any, part))
    raise ValueError(f"data {name} is a {type(part).__name__}; it must be {KINDS}")


def _read_tensors(name: str, images: Tensor, labels: Tensor) -> _Read:
    images = images.unsqueeze(1) if images.ndim == 3 else images
    if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(
            f"data {name} has images {images.dtype} {list(images.shape)}; they must be uint8 or floats, "
            "[n, c, h, w] or [n, h, w]"
        )
    images = images.float() if images.is_floating_point() else images
    if not images.isfinite().all():
        raise ValueError(f"data {name} has images with values that are not finite")
    shape = (images.shape[1], images.shape[2], images.shape[3])
    return _Read(_check_labels(name, labels, len(images)), shape, images.is_floating_point(), images)


def _read_items(name: str, dataset: Any) -> _Read:
    """Return the labels, for which each item is asked once."""
    if not len(dataset):
        raise ValueError(f"data {name} is an empty Dataset")
    try:
        first, labels = dataset[0], []
        if isinstance(first, Mapping):
            raise TypeError(f"item 0 is a dictionary of {some([str(each) for each in first])}")
        for row in range(len(dataset)):
            seed_generators(mix(ITEMS, 0, 0, row))
            labels.append(torch.as_tensor(dataset[row][1]))
        image, _ = first
        stacked = torch.stack(labels)
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        what = f"{type(error).__name__} {error}" if isinstance(error, LookupError) else str(error)
        raise ValueError(
            f"data {name}: an item of a Dataset must be an image and a label, a pair of them: {what}"
        ) from error
    image = to_image(image)
    shape = cast(tuple[int, int, int], tuple(image.shape))
    return _Read(_check_labels(name, stacked, len(dataset)), shape, image.is_floating_point(), dataset=dataset)


def _read_loader(name: str, loader: DataLoader[Any]) -> _Read:
    """Return the labels, for which one epoch is read."""
    try:
        len(loader)
    except TypeError as error:
        raise ValueError(
            f"data {name} is a DataLoader that does not know its length: a run counts its steps"
        ) from error
    labels: list[Tensor] = []
    shape, floats = (0, 0, 0), False
    for batch in loader:
        images, given = read_batch(batch)
        if not labels:
            shape, floats = cast(tuple[int, int, int], tuple(images.shape[1:])), images.is_floating_point()
        elif images.is_floating_point() != floats:
            raise ValueError(f"data {name} is a DataLoader of uint8 and of floats; all its images must be of one kind")
        labels.append(given.clone())  # a worker's batch holds a file open as long as one of its tensors is there
    if not labels:
        raise ValueError(f"data {name} is a DataLoader without batches")
    joint = torch.cat(labels)
    return _Read(_check_labels(name, joint, len(joint)), shape, floats, loader=loader)


def _check_labels(name: str, labels: Tensor, count: int) -> Tensor:
    if len(labels) != count:
        raise ValueError(f"data {name} has labels {labels.dtype} {list(labels.shape)} of {count} images")
    try:
        return cast_labels(labels).cpu()
    except ValueError as error:
        raise ValueError(f"data {name} has {error}") from error


def _classes(parts: Mapping[str, object], read: Mapping[str, _Read]) -> tuple[str, ...]:
    """Return the names that the training Dataset says, else numbers; as many as there are labels.

    Raises:
        ValueError: where two Datasets say different names: a number would mean two classes.
    """
    said = {name: names for name, part in parts.items() if (names := _said(part))}
    for name, names in said.items():
        first = next(iter(said))
        if names != said[first]:
            raise ValueError(
                f"data {name} has the classes {some(names)}, and data {first} {some(said[first])}: a label is a "
                "number in this list, so both must say the same names in the same order"
            )
    first = read["train"].labels
    count = first.shape[1] if first.ndim == 2 else 1 + max(int(x.labels.max()) for x in read.values() if len(x.labels))
    names = said.get("train", ())
    return names if len(names) >= count else tuple(map(str, range(count)))


def _said(part: object) -> tuple[str, ...]:
    """Return the names of the classes that a Dataset says, or the one that a `Subset` or DataLoader is of; none
    elsewhere.
    """
    while part is not None:
        names = getattr(part, "classes", None)
        if isinstance(names, Sequence) and not isinstance(names, str) and all(isinstance(each, str) for each in names):
            return tuple(names)
        part = getattr(part, "dataset", None)
    return ()


def _check_taken_as_is(config: DataConfig, whole: bool) -> None:
    """Raise ValueError for a change that is not made of images which are taken as they are."""
    colours = {name: getattr(config.augment, name) for name in ("brightness", "contrast", "saturation", "hue")}
    asked = {f"augment.{name}": value for name, value in colours.items() if value}
    asked |= {name: value for name in ("image_size", "pad") if (value := getattr(config, name)) is not None}
    if whole:
        asked |= {name: value for name in ("crop", "enlarge", "limit") if (value := getattr(config, name)) is not None}
        usual = DataConfig(config.name)
        same = ("standardise", "standardise_first", "std", "fraction", "views")
        asked |= {name: value for name in same if (value := getattr(config, name)) != getattr(usual, name)}
        asked |= {"augment": config.augment} if config.augment != AugmentConfig() else {}
        asked |= {"balance": True} if config.balance else {}
    for name, value in asked.items():
        what = "a DataLoader gives are" if whole else "are floats, or of a Dataset, are"
        raise ValueError(f"data.{name} is {value}, but images that {what} taken as they are: change them there")


def _of_loaders(sources: dict[str, Source], config: DataConfig, device: torch.device | str) -> Data:
    _check_taken_as_is(config, whole=True)
    if other := [name for name, each in sources.items() if not isinstance(each, Loaded)]:
        raise ValueError(f"data {other[0]} is no DataLoader, but others are: give all splits as DataLoaders")
    if "test" not in sources:
        raise ValueError("data has no 'test': a run ends with measuring it, and a DataLoader cannot be split")
    train = sources["train"].to(device)
    assert isinstance(train, Loaded)
    none = replace(train, count=0)
    return Data(
        train, sources["validation"].to(device) if "validation" in sources else none, sources["test"].to(device)
    )
