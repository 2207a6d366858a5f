"""Which images a split holds: a number that stays when they are moved, and changes when one of them does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
from torch import Tensor

from torchcaps.data.cache import Mapped
from torchcaps.data.files import ImageFiles
from torchcaps.data.images import Images, Source
from torchcaps.data.items import Floats
from torchcaps.data.streams import Stream
from torchcaps.forms import Digest

LIMIT = 2 * 2**30  # bytes of files that are read; of more their paths and sizes are taken
BLOCK = 2**24  # bytes of an array that are hashed at one time


def digest(source: Source) -> Digest:
    """Return the SHA-256 of the images of a split as they were read, before they are decoded, resized or padded.

    - Of files: over classes, path below the folder of the class, and bytes of each, sorted; above 2 GiB in all over
      path and size in place of the bytes, which `Digest.of` says. `Digest.order` is over their places in that order.
    - Of arrays: over the names of the classes, pixels and labels, in their order.
    - Of items of a user's Dataset, and of a DataLoader: none, only their number.
    - Of composed images: over the digest of the images that they are composed of, and the settings.

    Raises:
        OSError: when a file cannot be read.
    """
    if not len(source):
        return Digest()
    if isinstance(source, Stream):
        settings = {
            each.name: getattr(source, each.name) for each in fields(source) if each.name not in ("base", "resized")
        }
        written = json.dumps([type(source).__name__, settings, digest(source.base).sha256], sort_keys=True)
        return Digest(hashlib.sha256(written.encode()).hexdigest(), len(source), "a stream")
    if isinstance(source, Images | ImageFiles | Mapped) and source.paths:
        labels = source.labels.tolist()  # of each image one, or 0 and 1 of each class
        several = source.labels.ndim == 2
        sets = [[n for n, is_shown in enumerate(each) if is_shown] if several else [each] for each in labels]
        return _of_files(source.paths, [[source.classes[n] for n in each] for each in sets])
    if not isinstance(source, Images | Floats):
        return Digest(images=len(source))
    return _of_arrays(source.classes, source.pixels, source.labels)


def _of_files(paths: Sequence[str], shown: Sequence[list[str]]) -> Digest:
    named = [(names, below(path, names), path) for names, path in zip(shown, paths, strict=True)]
    places = sorted(range(len(named)), key=named.__getitem__)
    order = hashlib.sha256(np.asarray(places, "<i8").tobytes()).hexdigest()
    files = [named[place] for place in places]
    sizes = [Path(path).stat().st_size for _, _, path in files]
    read = sum(sizes) <= LIMIT
    total = hashlib.sha256()
    for (names, place, path), size in zip(files, sizes, strict=True):
        total.update(json.dumps([names, place, size]).encode())
        if read:
            with open(path, "rb") as file:
                while block := file.read(BLOCK):
                    total.update(block)
    return Digest(total.hexdigest(), len(files), "files" if read else "paths and sizes", order)


def below(path: str, names: Sequence[str]) -> str:
    """Return the part of `path` below the folder of one of the classes `names`, with slashes; its last part
    elsewhere.
    """
    parts = Path(path).parts
    place = next((n for n in reversed(range(len(parts) - 1)) if parts[n] in names), len(parts) - 2)
    return "/".join(parts[place + 1 :])


def _of_arrays(classes: Sequence[str], *arrays: Tensor) -> Digest:
    total = hashlib.sha256(json.dumps(list(classes)).encode())
    for tensor in arrays:
        array = np.ascontiguousarray(tensor.cpu().numpy())
        total.update(json.dumps([str(array.dtype), list(array.shape)]).encode())
        content = memoryview(array.reshape(-1).view(np.uint8).data)
        for start in range(0, len(content), BLOCK):
            total.update(content[start : start + BLOCK])
    return Digest(total.hexdigest(), len(arrays[0]), "arrays")
