"""Predictions for many pictures: files found, read by several threads, computed in batches."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

import numpy as np

from torchcaps.data.pictures import suffixes, walk
from torchcaps.deploy.classifier import BATCH, Classifier, Prediction
from torchcaps.files import check_plain
from torchcaps.names import whole


def find_pictures(places: Iterable[str | Path]) -> list[Path]:
    """Return the files as they are named, also those that are not there; of folders all pictures in them and below, by
    name, without what is hidden. Where nothing has the name of a place with *, ? or [ in it, it is a pattern, which not
    every shell expands.

    Raises:
        FileNotFoundError: when nothing of all is there.
        ValueError: for a folder that holds no picture, or that cannot be read.
    """
    found: list[Path] = []
    for place in chain.from_iterable(map(_expanded, places)):
        if not os.path.isdir(place):  # which says no where Path.is_dir fails: of a folder that is closed, a long name
            found.append(place)
            continue
        try:
            inside = sorted(path for path in map(Path, walk(place)) if path.suffix.lower() in suffixes())
        except OSError as error:
            raise ValueError(f"cannot read the folder {error.filename}: {error.strerror}") from error
        if not inside:
            raise ValueError(f"the folder {place} holds no pictures")
        found += inside
    if found and not any(map(os.path.exists, found)):
        raise FileNotFoundError(f"there is no picture and no folder {found[0]}")
    return found


def _expanded(place: str | Path) -> list[Path]:
    """Return what the pattern `place` matches, sorted; `place` itself where it is none, or matches nothing."""
    pattern = str(place)
    if os.path.exists(pattern) or not glob.has_magic(pattern):
        return [Path(place)]
    return sorted(map(Path, glob.glob(pattern))) or [Path(place)]


def predict_files(
    classifier: Classifier, paths: Iterable[Path], batch: int = BATCH
) -> Iterator[tuple[Path, Prediction | ValueError]]:
    """Return an iterator of each of `paths` with what it shows, or with why it cannot be read; files are read in
    several threads.

    Raises:
        ValueError: for a `batch` below 1.
    """
    return _predict_files(classifier, iter(paths), min(whole("batch", batch), classifier.most))


def _predict_files(
    classifier: Classifier, left: Iterator[Path], batch: int
) -> Iterator[tuple[Path, Prediction | ValueError]]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as readers:
        while several := list(islice(left, batch)):
            read = list(readers.map(lambda path: _read(classifier, path), several))
            answers = iter(
                classifier.answer(pixels) if (pixels := [x for x in read if isinstance(x, np.ndarray)]) else []
            )
            for path, pixels in zip(several, read, strict=True):
                yield path, pixels if isinstance(pixels, ValueError) else next(answers)


def _read(classifier: Classifier, path: Path) -> np.ndarray | ValueError:
    try:
        check_plain(path)  # to open a pipe would wait for ever
        return classifier.read(path)
    except ValueError as error:
        return error
    except OSError as error:
        return ValueError(f"cannot read the image {path}: {error.strerror}")
