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
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
        _write_lacking({paths[name]: files for name, files in splits.items()}, folder)
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


def _write_lacking(wanted: Mapping[Path, ImageFiles], folder: Path) -> None:
    """Write the files of `wanted` that are not there, if `folder` has room for all of them; OSError where it has not.

    The room is looked at while no other process writes the same files, so that what these take is seen.
    """

    def lacking(paths: Iterable[Path]) -> list[Path]:
        return [path for path in paths if read(path, wanted[path]) is None]

    with contextlib.ExitStack() as held:
        ours = lacking(sorted(wanted))  # sorted, so that no two processes wait for each other
        for path in ours:
            held.enter_context(wait_for(path.with_suffix(".lock")))
        if not (left := lacking(ours)):  # nothing was, or another process has written it meanwhile
            return
        for path in left:
            for part in path.parent.glob(f"{path.stem}.*.part"):  # by a process that was killed: it would hold the lock
                _remove(part)
        needed = sum(_size(wanted[path]) for path in left)
        if needed + MARGIN > (free := shutil.disk_usage(folder).free):
            raise OSError(f"it has room for {free / 1e9:.1f} GB, and {needed / 1e9:.1f} GB are needed")
        for path in left:
            _write(wanted[path], path)


def _size(files: ImageFiles) -> int:
    """Return the bytes of the decoded pictures."""
    return len(files) * int(np.prod(files.shape))


def _map(files: ImageFiles, path: Path) -> Mapped:
    if (pixels := read(path, files)) is None:
        raise OSError(f"{path} is damaged")
    return Mapped(pixels, torch.arange(len(files)), files.labels, files.classes, files.paths)


def _write(files: ImageFiles, path: Path) -> None:
    """Decode `files` into the file `path`, by way of another that takes its name when it is whole."""
    part = path.with_suffix(f".{os.getpid()}.part")
    size = _size(files) / 1e9
    say(f"decoding {len(files):,} pictures once into {path} ({size:.1f} GB), which may be deleted at any time")
    try:
        _fill(part, files)
        replace_file(part, path)
    finally:
        _remove(part)


def _fill(part: Path, files: ImageFiles) -> None:
    """Decode `files` into the file `part`, in the format of `np.save`.

    It is written and not mapped: a disk that fills meanwhile is an OSError then, and in a map the end of the process.
    """
    head = {"descr": "|u1", "fortran_order": False, "shape": (len(files), *files.shape)}
    with open(part, "wb") as file:
        np.lib.format.write_array_header_1_0(file, head)
        for decoded in files.decoded():
            file.write(decoded.cpu().numpy().data)
        file.flush()
        os.fsync(file.fileno())  # some systems say only then that a disk is full


def _remove(part: Path) -> None:
    """Take away `part`, where it is there; where that fails, which hides no error, the next process tries again."""
    with contextlib.suppress(OSError):
        part.unlink()
