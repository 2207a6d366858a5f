"""Pictures in files: decoded into memory where they fit, else once into a file that is mapped (`data/cache.py`).

A folder is PATH/train/CLASS/**, PATH/test/CLASS/** and, if wanted, PATH/validation/CLASS/** (`tree.SPLITS` has other
names of these); or PATH/CLASS/**, of which a stratified fifth, always the same, becomes the test split.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from torchcaps.config import DataConfig
from torchcaps.data.cache import open_cached
from torchcaps.data.files import Form, ImageFiles, decode
from torchcaps.data.images import Splits
from torchcaps.data.notes import say, some
from torchcaps.data.splits import set_aside
from torchcaps.data.survey import choose_channels, common_size, say_facts, survey
from torchcaps.data.tree import list_tree

__all__ = ["assemble", "decode", "read_folder"]  # decode: one picture, as the pictures of a folder are read

RESIDENT_LIMIT = 2 * 2**30  # bytes of all decoded splits together; above it they are mapped
TEST_SHARE, TEST_SEED = 0.2, 0


def read_folder(path: Path, config: DataConfig) -> Splits:
    """Return the splits of the image folder `path`; see the head of this file, and `assemble`.

    Hidden files and folders are passed over; other files that are no pictures are named in the log.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: when it or a class holds no images, when a split has a class that training lacks, when folders lie
            where they cannot be classes or splits, and as `assemble` does.
    """
    tree = list_tree(path)
    if tree.left:
        say(f"left out {len(tree.left):,} file(s) of {path} that are no pictures in a class folder: {some(tree.left)}")
    if tree.below:
        say(f"read as pictures of a class of {path} what lies in {len(tree.below):,} folder(s): {some(tree.below)}")
    listed = {}
    for split, classes in tree.splits.items():
        paths = tuple(file for files in classes.values() for file in files)
        labels = [tree.classes.index(name) for name, files in classes.items() for _ in files]
        listed[split] = ImageFiles(paths, torch.tensor(labels), tree.classes, Form((0, 0, 0)))
    return assemble(listed if "train" in listed else split_test(listed[""]), config)


def split_test(whole: ImageFiles) -> dict[str, ImageFiles]:
    """Return a training and a test split, where none were given: a stratified fifth is the test split, always the
    same; see `set_aside`.
    """
    train, test = set_aside(whole.labels, round(TEST_SHARE * len(whole)), TEST_SEED)
    return {"train": whole.subset(train), "test": whole.subset(test)}


def assemble(listed: dict[str, ImageFiles], config: DataConfig) -> Splits:
    """Return the splits of listed files, of which only paths and labels are known: in memory, or mapped.

    They become colour when a training picture has colour and grey otherwise, unless `config.colour` says which. They
    are brought to `config.image_size`, where it is given, as `config.fit` says; without it all must have one size.
    What that changes, beyond the size, is said in the log.

    Raises:
        ValueError: when an image cannot be read (`config.skip_unreadable` leaves those out, and names them), when sizes
            differ without an `image_size`, and when `config.ground` is no colour.
    """
    listed, facts = survey(listed, config.skip_unreadable)
    channels = choose_channels(facts, config)
    size = config.sides or common_size(listed, facts)
    say_facts(listed, facts, size, config)
    form = Form((channels, *size), config.fit, config.ground)
    splits = {name: replace(part, form=form, workers=workers(len(part))) for name, part in listed.items()}
    if sum(map(len, splits.values())) * channels * size[0] * size[1] <= RESIDENT_LIMIT:
        return Splits(**{name: part.load() for name, part in splits.items()})
    return Splits(**open_cached(splits))


def workers(images: int) -> int:
    """Return how many worker processes are worth starting for so many images: none for a few hundred, else one per
    core that this process may use, up to eight.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return 0 if images < 512 else min(8, cores)
