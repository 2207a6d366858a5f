"""What is known of a data set before its pictures are decoded: how many, of which size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from torchcaps.config import Config, DataConfig
from torchcaps.data.catalogue import absent, composition, data_root, find
from torchcaps.data.entry import SMALLEST, Entry

SAMPLE = 200  # pictures whose heads are read
UNKNOWN = 64, 64  # where none can be read, which loading then says


CLASSES = {"h-imagenet": 200}  # of the papers, where the user's files decide


def named_size(config: DataConfig) -> int | tuple[int, int] | None:
    """Return the size that images are brought to, a side or (height, width), as far as `config` and its set say it
    without a look at files.
    """
    sizes = config.enlarge, config.crop, config.pad, config.image_size, _own_size(config)
    return next((each for each in sizes if each), None)


def named_classes(config: DataConfig) -> int:
    """Return the number of classes, as far as the set says it; else 0."""
    entry = _pictured(config)
    return len(entry.classes) or CLASSES.get(entry.name, 0)


def named_channels(config: DataConfig) -> int:
    """Return the number of channels, as far as the set says it; else 0."""
    settings = composition(config)
    return (settings.channels if settings is not None else 0) or _pictured(config).channels


def epoch_images(config: DataConfig) -> int:
    """Return the training images of an epoch, as far as the set says them; else 0. Those of a stored set that are held
    out to validate on are among them, and a stream is as long as if none were.
    """
    entry, settings = find(config.name)[0], composition(config)
    if settings is None:
        return entry.train
    total = (settings.per_image or 0) * _pictured(config).train or entry.train
    return min(settings.epoch or total, total)


def _stream_images(config: DataConfig) -> tuple[int, int] | None:
    """Return the images of an epoch of a composed set, and those that it is validated on; None of stored sets, and of
    the user's own that something is composed of.
    """
    settings, base = composition(config), _pictured(config)
    if settings is None or not base.train:
        return None
    held = round(config.validation * base.train)
    parts = (base.train - held, settings.epoch), (held, settings.held)
    totals = [((settings.per_image or 0) * count, asked) for count, asked in parts]
    train, validation = (min(asked or total, total, config.limit or total) for total, asked in totals)
    return train, validation


def _pictured(config: DataConfig) -> Entry:
    """Return the set whose images are seen: what a composed one is composed of, where that has a name."""
    entry, settings = find(config.name)[0], composition(config)
    return entry if settings is None or not settings.base else find(settings.base)[0]


def _own_size(config: DataConfig) -> tuple[int, int] | None:
    """Return height and width of the set's images before any is resized, as far as they are known.

    Of a composed set they are as much larger than the base images as the set's own are than its own base: by its
    shifts, or else in proportion.
    """
    entry, settings = find(config.name)[0], composition(config)
    if settings is None or entry.compose is None or entry.image_size is None:
        return entry.image_size
    if settings.size:
        return settings.size, settings.size
    usual, base = (find(name)[0].image_size if name else None for name in (entry.compose.base, settings.base))
    if usual is None or base is None:
        return entry.image_size
    side, before = max(SMALLEST, *base), max(SMALLEST, *usual)
    moved = entry.image_size[0] == before + 2 * (entry.compose.shift or 0)
    side = side + 2 * (settings.shift or 0) if moved else round(side * entry.image_size[0] / before)
    return side, side


class DataFacts(NamedTuple):
    """Of the training split, with what is held out of it to select on; of a composed set of an epoch of it."""

    images: int
    size: tuple[int, int]  # height and width; of the user's own files the medians
    classes: int
    colour: bool
    free: bool  # whether pictures may have any size, so that one is chosen
    single: bool  # whether each shows one class
    held: int | None = (
        None  # images of a composed set that it is validated on; of others a share is held out of `images`
    )


def data_facts(config: DataConfig) -> DataFacts:
    """Count the training images and measure their size.

    Of the user's own files only names, tables and the heads of some pictures are read; of `npz:PATH` all.

    Raises:
        FileNotFoundError, ValueError: as `load_data`.
    """
    entry, path = find(config.name)
    settings = composition(config)
    if settings is None and entry.train and entry.image_size is not None:
        known = entry.image_size, named_classes(config) or 10, named_channels(config) == 3
        return DataFacts(min(entry.train, config.limit or entry.train), *known, False, True)
    counted, size = _stream_images(config), _own_size(config)
    if settings is not None and counted is not None and size is not None:
        known = size, named_classes(config), named_channels(config) == 3
        return DataFacts(counted[0], *known, False, settings.objects == 1, counted[1])
    if path is not None and entry.name != "npz:PATH":
        return _measure_files(_list_files(path, entry.name == "list:FILE"), config.limit)
    from torchcaps.data.load import load_data

    data = load_data(config)
    of_train, held = len(data.train), len(data.validation)
    known = data.image_size, data.num_classes, data.channels == 3, False, data.shown == 1
    return DataFacts(of_train + held, *known) if settings is None else DataFacts(of_train, *known, held)


def has_test_split(config: DataConfig) -> bool:
    """Return whether a data set says which images are its test split; of the user's own files it may be that none do,
    and a fifth is drawn.

    Raises:
        FileNotFoundError, ValueError: as `load_data`.
    """
    entry, path = find(config.name)
    if path is None or entry.name == "npz:PATH" or config.test is not None:
        return True
    return _list_files(path, entry.name == "list:FILE").parted


def missing_data(config: Config, root: Path | None = None) -> str:
    """Return which data set a recipe lacks in the data root, and which file of it; empty where all is at hand.

    A composed set needs the files of the set that it is composed from, whichever that is.
    """
    base = config.data.compose.base
    for name in (config.data.name, config.data.test, base):
        entry = find(name)[0] if name else None
        if entry is None or (base is not None and entry.compose is not None):
            continue
        if lacking := absent(entry, data_root(root or config.data.root)):
            return f"{name} lacks {lacking[0]}"
    return ""


class _Listed(NamedTuple):
    """The training pictures of the user's own files, or all where there is no test split."""

    files: Sequence[str]
    parted: bool
    classes: int
    single: bool


def _list_files(path: Path, listed: bool) -> _Listed:
    if listed:
        from torchcaps.data.listed import read_rows

        rows = read_rows(path)
        files = [row.path for row in rows if row.split in ("", "train")]
        classes = {label for row in rows for label in row.labels}
        return _Listed(files, any(row.split for row in rows), len(classes), all(len(row.labels) == 1 for row in rows))
    from torchcaps.data.tree import list_tree

    tree = list_tree(path)
    parted = "train" in tree.splits
    files = [file for group in tree.splits["train" if parted else ""].values() for file in group]
    return _Listed(files, parted, len(tree.classes), True)


def _measure_files(listed: _Listed, limit: int | None) -> DataFacts:
    from torchcaps.data.folder import TEST_SHARE
    from torchcaps.data.pictures import Facts, describe_picture

    files, parted, classes, single = listed
    found: list[Facts] = []
    for file in files[:: max(1, len(files) // SAMPLE)]:
        try:
            found.append(describe_picture(file))
        except (OSError, ValueError):  # loading says it, or leaves such files out
            continue
    sizes = [each.size for each in found] or [UNKNOWN]
    size = round(median(height for height, _ in sizes)), round(median(width for _, width in sizes))
    images = len(files) if parted else len(files) - round(TEST_SHARE * len(files))
    return DataFacts(min(images, limit or images), size, classes, any(each.colour for each in found), True, single)
