"""A data set, ready to be trained on: its three splits on the device, and the batches of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from torchcaps.config import AugmentConfig, DataConfig, Standardise
from torchcaps.data.batches import Batches
from torchcaps.data.catalogue import composition, data_root, find
from torchcaps.data.digest import digest
from torchcaps.data.images import Held, Images, Source, Splits, Stored
from torchcaps.data.loaders import Loaded
from torchcaps.data.notes import say
from torchcaps.data.overlap import MOST_SUMMED
from torchcaps.data.pictures import ground_colour
from torchcaps.data.splits import equal_share, hold_out, strata, stratified
from torchcaps.forms import Digest, SplitName
from torchcaps.memory import free_memory

SAMPLE = 4096  # images that mean and std are estimated on where they are not in memory
CHUNK = 1024  # images that are counted at one time
FEW = 64  # images that are compared at one time: as a rule the first ones differ
VALUES = 1 + 255 * MOST_SUMMED  # of a pixel


@dataclass(frozen=True, eq=False)
class Data:
    """The splits of a data set.

    Raises:
        ValueError: when the training split is empty, and when the splits differ in image shape or classes.
    """

    train: Source
    validation: Source  # may be empty
    test: Source
    standardise: Standardise = "none"
    crop: int | None = None  # pixels a side that batches are cut to
    views: Literal[1, 5, 10] = 1  # crops of each test image
    deviations: tuple[float, ...] = ()  # of the channels, for standardise "dataset"; else the training split's
    standardise_first: bool = False  # whole images, before they are cut or moved
    means: tuple[float, ...] = ()  # likewise
    read: Splits | None = None  # before they were resized or padded, on the CPU
    enlarge: int | None = None  # pixels a side that batches are enlarged to, after all else

    def __post_init__(self) -> None:
        if not len(self.train):
            raise ValueError("the training split is empty")
        if self.crop is not None and not 1 <= self.crop <= min(self.train.shape[1:]):
            raise ValueError(f"data.crop is {self.crop}: it must be 1 .. {min(self.train.shape[1:])} pixels")
        if self.enlarge is not None and self.enlarge < max(self.cut_size):
            height, width = self.cut_size
            raise ValueError(
                f"data.enlarge is {self.enlarge}: images of {width}x{height} pixels can be enlarged to "
                f"{max(height, width)} or more; data.image_size makes them smaller"
            )
        if self.views != 1 and self.crop is None:
            raise ValueError(f"data.views is {self.views}: several views of an image need data.crop")
        if self.deviations and (len(self.deviations) != self.channels or min(self.deviations) <= 0):
            raise ValueError(f"data.std is {self.deviations}: it must be above 0, one a channel ({self.channels})")
        if self.deviations and self.standardise != "dataset":
            raise ValueError(f"data.std is given, but data.standardise is {self.standardise!r}; it must be 'dataset'")
        if self.standardise_first and self.standardise == "none":
            raise ValueError("data.standardise_first is given, but data.standardise is 'none'; it must be another")
        for name in ("validation", "test"):
            split: Source = getattr(self, name)
            if split.shape != self.train.shape or split.classes != self.train.classes:
                found = f"{split.shape} of {len(split.classes)} classes"
                raise ValueError(f"{name} images {found}, training {self.train.shape} of {len(self.train.classes)}")

    @property
    def channels(self) -> int:
        return self.train.shape[0]

    @property
    def image_size(self) -> tuple[int, int]:
        """Return (height, width) of the images in a batch."""
        return self.cut_size if self.enlarge is None else (self.enlarge, self.enlarge)

    @property
    def cut_size(self) -> tuple[int, int]:
        """Return (height, width) of images as they are cut and moved, before a batch is enlarged."""
        return self.train.shape[1:] if self.crop is None else (self.crop, self.crop)

    @property
    def num_classes(self) -> int:
        return len(self.train.classes)

    @property
    def shown(self) -> int | None:
        """Return how many labels each image has: 1, or the number of overlapped objects; None where images differ in
        it.
        """
        return self.train.shown

    @property
    def mean(self) -> Tensor:
        """Return the mean of each channel over the training split, in [0, 1]: float32 [c], on the device."""
        return self._moments[0]

    @property
    def std(self) -> Tensor:
        """Return what each channel is divided by: its standard deviation over the training split, 1 for a constant
        channel, unless the config gives another: float32 [c].
        """
        return self._moments[1]

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        if self.means and self.deviations:
            return torch.tensor(self.means), torch.tensor(self.deviations)
        mean, std = moments(self.train)
        return mean, mean.new_tensor(self.deviations) if self.deviations else std

    def digest(self, split: SplitName) -> Digest:
        """Return which images `split` holds, as they were read; all of it is hashed."""
        read = self.read or Splits(self.train, self.test, self.validation)
        source = getattr(read, split)
        return Digest() if source is None else digest(source)

    def training(self, config: DataConfig, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> Batches:
        """Return the batches of the training split, shuffled and changed as `config.augment` says; an incomplete last
        one is dropped.

        With `config.balance` each class comes as often as any other.

        Raises:
            ValueError: when how `config` standardises is not what the data were loaded with, and as `Batches` does.
        """
        _check_colours(config.augment, self.channels)
        for name in ("standardise", "standardise_first"):
            if (asked := getattr(config, name)) != (loaded := getattr(self, name)):
                raise ValueError(f"data.{name} is {asked!r}, but the data were loaded with {loaded!r}")
        return self._batches(
            self.train,
            batch_size,
            rank,
            world,
            seed=seed,
            augment=config.augment,
            shuffle=True,
            balance=config.balance,
            drop_last=True,
        )

    def evaluation(self, split: SplitName, batch_size: int, rank: int = 0, world: int = 1) -> Batches:
        """Return the batches of all images of `split`, in their own order and unchanged, standardised as in training.

        They are cut from the middle where `crop` is given; those of the test split come as [b, views, c, h, w] where
        `views` is more than one.
        """
        source: Source = {"train": self.train, "validation": self.validation, "test": self.test}[split]
        return self._batches(source, batch_size, rank, world, views=self.views if split == "test" else 1)

    def _batches(self, source: Source, batch_size: int, rank: int, world: int, **options: Any) -> Batches:
        if isinstance(source, Loaded):
            return source.batches(options.get("seed", 0))
        mean, std = self._moments if self.standardise == "dataset" else (None, None)
        options |= {"standardise": self.standardise, "mean": mean, "std": std, "rank": rank, "world": world}
        options |= {"cut": self.crop, "standardise_first": self.standardise_first, "enlarge": self.enlarge}
        return Batches(source, batch_size, **options)


def load_data(config: DataConfig, device: torch.device | str = "cpu") -> Data:
    """Read the data set `config.name`, resize or pad it, hold out the validation split, and move all to `device`.

    The validation split is the one that the set gives, if it gives one; else `config.validation` of the training split,
    stratified by class, drawn by `config.split_seed`. The test split is that of `config.test`, where it is given. Of
    each split `config.limit` images are used at most. Where several processes share a folder, let one of them download
    first.

    Raises:
        FileNotFoundError: when the set is not there; says where it was looked for and what to do.
        ValueError: for an unknown name, for files that cannot be read, and for settings out of range.
    """
    if config.sides is not None and min(config.sides) < 1:
        raise ValueError(f"data.image_size is {config.image_size}: each side must be at least one pixel")
    if config.pad is not None and config.image_size is not None:
        raise ValueError(f"data.pad is {config.pad} and data.image_size {config.image_size}: images take one of them")
    if not 0 <= config.validation < 1:
        raise ValueError(f"data.validation is {config.validation}: it must be a share in [0, 1)")
    ground_colour(config.ground, 3)
    entry, path = find(config.name)
    _say_idle(config)
    if config.limit is not None and config.limit < 1:
        raise ValueError(f"data.limit is {config.limit}: it must be at least one image")
    train, test, validation = _call(entry.reader, path, config)
    if config.test is not None:
        test = read_test(config.test, config)
    return assemble(Splits(train, test, validation), config, device)


def assemble(read: Splits, config: DataConfig, device: torch.device | str = "cpu") -> Data:
    """Return the `Data` of what was read: of each split as many images as asked, the validation split held out where
    there is none, resized or padded, on `device`; see `load_data`.
    """
    train, test, validation = read
    train = _sample(train, config)
    if validation is None:
        assert isinstance(train, Stored)  # streams have a validation split of their own
        train, validation = hold_out(train, config)
    train = take_fraction(train, config)
    validation, test = _sample(validation, config), _sample(test, config)
    read = Splits(train, test, validation)
    _check_memory((train, validation, test), config)
    train, validation, test = (_fit(split, config).to(device) for split in (train, validation, test))
    check_variation(train)
    how = config.standardise, config.crop, config.views, config.std
    more = {"standardise_first": config.standardise_first, "enlarge": config.enlarge, "read": read}
    return Data(train, validation, test, *how, **more)


def _check_colours(asked: AugmentConfig, channels: int) -> None:
    """Raise ValueError for a change of colours that images of `channels` do not have; say which ones are left out."""
    if asked.contrast and channels not in (1, 3):
        raise ValueError(
            f"data.augment.contrast is {asked.contrast}: it is of grey and RGB images, and these have {channels} "
            "channels"
        )
    for name in ("saturation", "hue"):
        if (value := getattr(asked, name)) and channels != 3:
            say(f"data.augment.{name} is {value}: it is of RGB images, and changes nothing of {channels} channel(s)")


def _say_idle(config: DataConfig) -> None:
    """Say which settings of `config` none of the sets reads that it names: of its own, of the test split, and those
    that images of either are composed from.
    """
    named = [config.name, *([config.test] if config.test is not None else [])]
    composed = [settings for name in named if (settings := composition(replace(config, name=name))) is not None]
    entries = [find(name)[0] for name in (*named, *(settings.base for settings in composed)) if name]
    usual, idle = DataConfig(config.name), []
    idle += ["compose"] if not composed else []
    idle += ["copies"] if all(each.name != "affnist" for each in entries) else []
    idle += ["order"] if all(not each.name.startswith("npz:") for each in entries) else []
    names = list(dict.fromkeys(each.name for each in entries))
    do = f"{names[0]} does not read" if len(names) == 1 else f"{' and '.join(names)} do not read"
    for name in idle:
        if (value := getattr(config, name)) != getattr(usual, name):
            say(f"data.{name} is {value}, which {do}: it changes nothing")


def read_test(name: str, config: DataConfig) -> Source:
    """Return the test split of the set `name`, read with the settings of `config`."""
    entry, path = find(name)
    read = _call(entry.test_reader or entry.reader, path, replace(config, name=name))
    return read.test if isinstance(read, Splits) else read


def _call(reader: str, path: Path | None, config: DataConfig) -> Any:
    """Return what the function that `reader` names reads from `path`, or from the data root."""
    module, function = reader.split(":")
    config = _limit_streams(config)
    return getattr(import_module(module), function)(data_root(config.root) if path is None else path, config)


def _limit_streams(config: DataConfig) -> DataConfig:
    """Return `config` with streams of `config.limit` images at most, where its set is composed."""
    settings = composition(config)
    if config.limit is None or settings is None:
        return config
    epoch, held = (min(asked or config.limit, config.limit) for asked in (settings.epoch, settings.held))
    return replace(config, compose=replace(config.compose, epoch=epoch, held=held))


def _sample(split: Source, config: DataConfig) -> Source:
    """Return `config.limit` images of a stored `split`, class by class in proportion; streams have been told
    already.
    """
    if config.limit is None or not isinstance(split, Stored) or len(split) <= config.limit:
        return split
    return split.subset(stratified(strata(split.labels), config.limit, config.split_seed)[1])


def take_fraction(train: Source, config: DataConfig) -> Source:
    """Return `config.fraction` of a stored `train`: as many images of each class as of any other, or one fewer.

    A class that has fewer gives all of them, and the others as many more: see `splits.equal_share`. They are the first
    in an order of each class that `config.split_seed` draws, so that a smaller share is a part of a larger one. The
    validation split is not made smaller.

    Raises:
        ValueError: for a share outside (0, 1], for one that leaves a class without images, for images that show
            several classes, and for streams.
    """
    if config.fraction == 1:
        return train
    if not 0 < config.fraction <= 1:
        raise ValueError(f"data.fraction is {config.fraction}: it must be a share above 0, at most 1")
    if not isinstance(train, Stored) or train.labels.ndim != 1:
        raise ValueError(f"data.fraction is {config.fraction}: it is of stored images that show one class each")
    return train.subset(equal_share(train.labels, config.fraction, config.split_seed))


def _check_memory(splits: Sequence[Source], config: DataConfig) -> None:
    """Raise ValueError where images that are held in memory do not fit into it once they are resized or padded."""
    sides, memory = (config.pad, config.pad) if config.pad else config.sides, free_memory()
    if sides is None or memory is None:
        return
    pixels = sides[0] * sides[1]
    needed = sum(len(split) * split.shape[0] * pixels for split in splits if isinstance(split, Images))
    if needed > memory:
        name = "pad" if config.pad else "image_size"
        raise ValueError(
            f"data.{name} is {config.pad or config.image_size}: the images of {config.name} would take "
            f"{needed / 1e9:.3g} GB at that size, and there are {memory / 1e9:.3g} GB; take a smaller one, or fewer "
            "images (data.limit)"
        )


def _fit(split: Source, config: DataConfig) -> Source:
    """Return `split` resized or padded as `config` says; what is not held in memory resizes its images itself."""
    if not isinstance(split, Images):
        if config.pad is not None:
            raise ValueError(f"data.pad is {config.pad}: it is of images held in memory, not of {config.name}")
        return split
    if config.pad is not None:
        return split.pad(config.pad)
    height, width = split.shape[1:]
    sides = config.sides
    if sides is None or (height, width) == sides:
        return split
    if height * sides[1] != width * sides[0]:
        how = {"stretch": "stretched", "crop": "cut", "pad": f"put on {config.ground}"}[config.fit]
        say(f"images of {width}x{height} pixels are {how} to be {sides[1]}x{sides[0]} (--data.fit)")
    colour = ground_colour(config.ground, split.shape[0]) if config.fit == "pad" else (0,)
    return split.fit(sides, config.fit, colour)


def check_variation(train: Source) -> None:
    """Raise ValueError when all the images of a stored training split, if they are several, are the same."""
    if not isinstance(train, Stored) or len(train) < 2:
        return
    first = train.fetch(torch.zeros(1, dtype=torch.int64))
    if not any((train.fetch(indices) != first).any() for indices in torch.arange(len(train)).split(FEW)):
        raise ValueError(
            f"all {len(train):,} training images are the same: nothing can be learnt. Where pictures are drawn in "
            "transparency alone, lay them on a --data.ground of another colour"
        )


def moments(source: Source) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of each channel in [0, 1]: float32 [c] each, on the device of the source.

    Counted in integers, hence the same on every device; of floats in double. Of images that are not in memory 4,096 are
    read, evenly spaced in the order of the source, whether they are mapped or decoded anew. Unclipped sums of images
    give means above 1.
    """
    count = len(source) if isinstance(source, Held) else min(len(source), SAMPLE)
    sample = torch.arange(count) * len(source) // count
    if len(source) and source.fetch(sample[:1]).is_floating_point():
        return _float_moments(source, sample)
    channels = range(source.shape[0])
    device = torch.device("cpu")
    counts = torch.zeros(len(channels), VALUES, dtype=torch.int64)
    for pixels in source.stream(sample.split(CHUNK)):
        planes = [pixels[:, channel].flatten() for channel in channels]
        counts += torch.stack([torch.bincount(plane, minlength=VALUES) for plane in planes]).cpu()
        device = pixels.device
    weights, values = counts.double(), torch.arange(VALUES, dtype=torch.float64) / 255
    weights /= weights.sum(1, keepdim=True)
    mean = weights @ values
    std = ((values - mean[:, None]).square() * weights).sum(1).sqrt()
    std[std == 0] = 1.0
    return mean.float().to(device), std.float().to(device)


def _float_moments(source: Source, sample: Tensor) -> tuple[Tensor, Tensor]:
    total, squares, count = 0.0, 0.0, 0
    device = torch.device("cpu")
    for pixels in source.stream(sample.split(CHUNK)):
        wide, device = pixels.cpu().double(), pixels.device
        total, squares = total + wide.sum((0, 2, 3)), squares + wide.square().sum((0, 2, 3))
        count += wide[:, 0].numel()
    mean = torch.as_tensor(total) / count
    std = (torch.as_tensor(squares) / count - mean.square()).clamp_min(0).sqrt()
    std[std == 0] = 1.0
    return mean.float().to(device), std.float().to(device)
