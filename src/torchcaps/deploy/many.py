"""Predictions for many pictures: files found, read by several threads, computed in batches."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from torchcaps.data.pictures import suffixes
from torchcaps.deploy.classifier import BATCH, Classifier, Prediction
from torchcaps.files import check_plain


def find_pictures(places: Iterable[str | Path]) -> list[Path]:
    """Files as they are named; of folders all pictures in them and below, by name, without what is hidden.

    Raises:
        FileNotFoundError: for what is not there.
        ValueError: for a folder that holds no picture, and for what is no file, such as a pipe.
    """
    found: list[Path] = []
    for place in map(Path, places):
        if not place.is_dir():
            if not place.exists():
                raise FileNotFoundError(f"there is no picture and no folder {place}")
            check_plain(place)
            found.append(place)
            continue
        inside = sorted(path for path in _walk(place) if path.suffix.lower() in suffixes())
        if not inside:
            raise ValueError(f"the folder {place} holds no pictures")
        found += inside
    return found


def predict_files(
    classifier: Classifier, paths: Iterable[Path], batch: int = BATCH
) -> Iterator[tuple[Path, Prediction | ValueError]]:
    """Each of `paths` with what it shows, or with why it cannot be read; files are read in several threads."""
    left = iter(paths)
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
        return classifier.read(path)
    except ValueError as error:
        return error


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in files if not name.startswith("."))
