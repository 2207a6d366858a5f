"""What is known of a data set before its pictures are decoded: how many, of which size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from torchcaps.config import Config, DataConfig
from torchcaps.data.catalogue import absent, data_root, find

SAMPLE = 200  # pictures whose heads are read
UNKNOWN = 64, 64  # where none can be read, which loading then says


CLASSES = {"h-imagenet": 200}  # of the papers, where the user's files decide


def named_size(config: DataConfig) -> int | tuple[int, int] | None:
    """Return the size that images are brought to, a side or (height, width), as far as `config` and its set say it
    without a look at files.
    """
    sizes = (
        config.enlarge,
        config.crop,
        config.pad,
        config.image_size,
        config.compose.size,
        find(config.name)[0].image_size,
    )
    return next((each for each in sizes if each), None)


def named_classes(config: DataConfig) -> int:
    """Return the number of classes, as far as the set says it; else 0."""
    entry, _ = find(config.name)
    return len(entry.classes) or CLASSES.get(entry.name, 0)


class DataFacts(NamedTuple):
    """Of the training split, with what is held out of it to select on."""

    images: int
    size: tuple[int, int]  # height and width; of the user's own files the medians
    classes: int
    colour: bool
    free: bool  # whether pictures may have any size, so that one is chosen
    single: bool  # whether each shows one class


def data_facts(config: DataConfig) -> DataFacts:
    """Count the training images and measure their size.

    Of the user's own files only names, tables and the heads of some pictures are read; of `npz:PATH` all.

    Raises:
        FileNotFoundError, ValueError: as `load_data`.
    """
    entry, path = find(config.name)
    compose = entry.compose
    if entry.train and entry.image_size is not None:
        images = config.compose.epoch or (compose.epoch if compose is not None else None) or entry.train
        single = compose is None or (config.compose.objects or compose.objects or 1) == 1
        known = entry.image_size, len(entry.classes) or 10, entry.channels == 3
        return DataFacts(min(images, config.limit or images), *known, False, single)
    if path is not None and entry.name != "npz:PATH":
        return _measure_files(_list_files(path, entry.name == "list:FILE"), config.limit)
    from torchcaps.data.load import load_data

    data = load_data(config)
    images = len(data.train) + len(data.validation)
    return DataFacts(images, data.image_size, data.num_classes, data.channels == 3, False, data.shown == 1)


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
