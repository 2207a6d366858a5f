"""Pictures that memory cannot hold: decoded once into a file of plain bytes, of which the system maps what is read.

A file's name is a digest of what was decoded and how, so a picture that changes makes another file. It appears whole or
not at all, one process writes it while others wait, and nothing in it is ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from torchcaps.data.catalogue import cache_root
from torchcaps.data.images import Labelled, check_labels, one_ahead
from torchcaps.data.notes import say
from torchcaps.data.sending import sent
from torchcaps.files import replace as replace_file
from torchcaps.locking import wait_for

if TYPE_CHECKING:
    from torchcaps.data.files import ImageFiles

VERSION = 1  # of what decoding does: another one makes other files
MARGIN = 2**30  # bytes of a disk that are left free


@dataclass(frozen=True, eq=False)
class Mapped(Labelled):
    """Images of which the pixels lie in a file that is mapped into memory."""

    pixels: np.ndarray  # uint8 [m, c, h, w], of more images than these
    rows: Tensor  # int64 [n], which of them, on the CPU
    labels: Tensor  # int64 [n], or label sets uint8 [n, classes] of 0 and 1
    classes: tuple[str, ...]
    paths: tuple[str, ...]  # of the files that they were decoded from

    def __post_init__(self) -> None:
        check_labels(self.labels, self.classes, len(self.rows))

    @property
    def shape(self) -> tuple[int, int, int]:
        _, c, h, w = self.pixels.shape
        return c, h, w

    def fetch(self, indices: Tensor) -> Tensor:
        pixels = torch.from_numpy(self.pixels[self.rows[indices.cpu()].numpy()])
        return sent(pixels, self.labels.device)

    def stream(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield `fetch` of each of `batches`, one batch ahead."""
        return one_ahead(self.fetch, batches)

    def subset(self, indices: Tensor) -> Mapped:
        paths, labels = tuple(self.paths[n] for n in indices.tolist()), self.labels[indices.to(self.labels.device)]
        return replace(self, rows=self.rows[indices.cpu()], labels=labels, paths=paths)

    def to(self, device: torch.device | str) -> Mapped:
        return replace(self, labels=self.labels.to(device))


def open_cached(splits: Mapping[str, ImageFiles]) -> dict[str, Mapped] | dict[str, ImageFiles]:
    """Return the splits with their pixels in files of the user's cache folder, which are made where they are not there.

    Where that folder cannot be written to or has too little room, the splits themselves, decoded whenever they are
    needed; the log says so.
    """
    folder = cache_root() / "pictures"
    paths = {name: folder / f"{digest(files)}.npy" for name, files in splits.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lacking = [splits[name] for name, path in paths.items() if read(path, splits[name]) is None]
        needed = sum(len(files) * int(np.prod(files.shape)) for files in lacking)
        if needed + MARGIN * bool(needed) > (free := shutil.disk_usage(folder).free):
            raise OSError(f"it has room for {free / 1e9:.1f} GB, and {needed / 1e9:.1f} GB are needed")
        return {name: _map(files, paths[name]) for name, files in splits.items()}
    except OSError as error:
        reason = error.strerror or str(error)
        say(f"pictures are decoded anew in every epoch, since {folder} cannot keep them ({reason}): TORCHCAPS_CACHE "
            "names another folder")  # fmt: skip
        return dict(splits)


def digest(files: ImageFiles) -> str:
    """Return a name, of 32 hexadecimal digits, of what `files` decode to: of their paths, sizes and times, and the
    form.
    """
    from PIL import __version__ as pillow

    hashed = hashlib.sha256(json.dumps([VERSION, pillow, files.form]).encode())
    for number, path in enumerate(files.paths):
        facts = os.stat(path)
        box = files.boxes[number] if files.boxes else None
        hashed.update(json.dumps([os.path.abspath(path), facts.st_size, facts.st_mtime_ns, box]).encode())
    return hashed.hexdigest()[:32]


def read(path: Path, files: ImageFiles) -> np.ndarray | None:
    """Return the pixels in the file `path`, mapped: uint8 [n, c, h, w]; None where it is not there or is another."""
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return pixels if pixels.dtype == np.uint8 and pixels.shape == (len(files), *files.shape) else None


def _map(files: ImageFiles, path: Path) -> Mapped:
    if (pixels := read(path, files)) is None:
        with wait_for(path.with_suffix(".lock")):
            if (pixels := read(path, files)) is None:  # else another process has written it meanwhile
                _write(files, path)
                pixels = read(path, files)
    if pixels is None:
        raise OSError(f"{path} is damaged")
    return Mapped(pixels, torch.arange(len(files)), files.labels, files.classes, files.paths)


def _write(files: ImageFiles, path: Path) -> None:
    """Decode `files` into the file `path`, by way of another that takes its name when it is whole."""
    for left in path.parent.glob(f"{path.stem}.*.part"):  # by a process that was killed: it would hold the lock
        _remove(left)
    part = path.with_suffix(f".{os.getpid()}.part")
    size = len(files) * int(np.prod(files.shape))
    say(f"decoding {len(files):,} pictures once into {path} ({size / 1e9:.1f} GB), which may be deleted at any time")
    try:
        _fill(part, files)
        replace_file(part, path)
    finally:
        _remove(part)


def _fill(part: Path, files: ImageFiles) -> None:
    """Decode `files` into the file `part`, which is closed however that ends: Windows renames none that is mapped."""
    pixels = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(len(files), *files.shape))
    try:
        begin = 0
        for decoded in files.decoded():
            pixels[begin : begin + len(decoded)] = decoded.cpu().numpy()
            begin += len(decoded)
        pixels.flush()
    finally:
        del pixels  # which the traceback of an error would keep


def _remove(part: Path) -> None:
    """Take away `part`, where it is there; where that fails, which hides no error, the next process tries again."""
    with contextlib.suppress(OSError):
        part.unlink()
