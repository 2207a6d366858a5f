"""Images in files, decoded whenever they are fetched, ahead of time in processes or threads of their own."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing import get_all_start_methods, get_start_method
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from torchcaps.data.images import Fit, Images, Labelled, check_labels, some_ahead
from torchcaps.data.pictures import fit_picture, read_picture
from torchcaps.data.sending import sent

Box = tuple[float, float, float, float]  # left, top, right and bottom, in shares of width and height
DECODE_CHUNK = 64  # images that a worker hands over at one time when all are decoded at once


class Form(NamedTuple):
    """What files become: uint8 of `shape`, in the way that `pictures.read_picture` and `fit_picture` describe."""

    shape: tuple[int, int, int]  # channels (1 or 3), height, width
    fit: Fit = "stretch"
    ground: str = "white"


@dataclass(frozen=True, eq=False)
class ImageFiles(Labelled):
    """Images on disk, decoded whenever they are fetched."""

    paths: tuple[str, ...]
    labels: Tensor  # int64 [n], or label sets uint8 [n, classes] of 0 and 1
    classes: tuple[str, ...]
    form: Form
    workers: int = 0  # processes or threads that decode ahead in `stream`; 0: none does
    boxes: tuple[Box | None, ...] = ()  # what is cut out of each image first; empty: nothing of any

    def __post_init__(self) -> None:
        if self.boxes and len(self.boxes) != len(self.paths):
            raise ValueError(f"{len(self.paths)} files have {len(self.boxes)} boxes, not one each, or None")
        check_labels(self.labels, self.classes, len(self.paths))

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.form.shape

    def fetch(self, indices: Tensor) -> Tensor:
        """Return the images at `indices` int64 [b], uint8 [b, c, h, w]; ValueError, naming the file, where one cannot
        be read.
        """
        return sent(self._decoder[indices.tolist()], self.labels.device)

    def stream(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield `fetch` of each of `batches`; each worker decodes a whole batch, two batches ahead.

        Workers are processes where these are forked. Elsewhere, as on Windows and macOS, one would import the user's
        script once more, which may train without a guard; there they are threads.
        """
        if not self.workers:
            yield from map(self.fetch, batches)
            return
        workers, device = min(self.workers, max(1, len(batches))), self.labels.device
        if forks():
            ahead = self._in_processes(batches, workers)
        else:
            decoder = self._decoder
            ahead = some_ahead(lambda batch: decoder[batch.tolist()], batches, workers, 2 * workers)
        with closing(ahead):
            for decoded in ahead:
                yield sent(decoded, device)

    def _in_processes(self, batches: Sequence[Tensor], workers: int) -> Generator[Tensor, None, None]:
        loader = DataLoader(
            _Guarded(self._decoder),
            batch_size=None,
            sampler=[batch.tolist() for batch in batches],
            num_workers=workers,
            pin_memory=self.labels.device.type == "cuda",
            worker_init_fn=_leave_interrupts,
            generator=torch.Generator(),  # else each pass would draw from the global generator
        )
        for decoded in loader:
            if isinstance(decoded, ValueError):
                raise decoded
            yield decoded

    def subset(self, indices: Tensor) -> ImageFiles:
        chosen = indices.tolist()
        paths, boxes = (tuple(each[index] for index in chosen) if each else () for each in (self.paths, self.boxes))
        return replace(self, paths=paths, boxes=boxes, labels=self.labels[indices.to(self.labels.device)])

    def to(self, device: torch.device | str) -> ImageFiles:
        return replace(self, labels=self.labels.to(device))

    def decoded(self) -> Iterator[Tensor]:
        """Yield all of them, in their order: uint8 [up to `DECODE_CHUNK`, c, h, w] at one time."""
        return self.stream(torch.arange(len(self)).split(DECODE_CHUNK))

    def load(self) -> Images:
        """Return all of them, decoded into memory."""
        pixels = torch.empty(len(self), *self.shape, dtype=torch.uint8, device=self.labels.device)
        for rows, decoded in zip(pixels.split(DECODE_CHUNK), self.decoded(), strict=True):
            rows.copy_(decoded)
        return Images(pixels, self.labels, self.classes, self.paths)

    @property
    def _decoder(self) -> _Decoder:
        return _Decoder(self.paths, self.boxes, self.form)


@dataclass(frozen=True)
class _Decoder(Dataset):
    """Lists of indices to their images: what a worker process holds of `ImageFiles`.

    No tensor among it, so that it may be sent to a process even from a CUDA device.
    """

    paths: tuple[str, ...]
    boxes: tuple[Box | None, ...]
    form: Form

    def __getitem__(self, index: list[int]) -> Tensor:
        pixels = torch.empty(len(index), *self.form.shape, dtype=torch.uint8)
        for row, i in zip(pixels, index, strict=True):
            row.copy_(decode(self.paths[i], *self.form, box=self.boxes[i] if self.boxes else None))
        return pixels


@dataclass(frozen=True)
class _Guarded(Dataset):
    """A decoder that hands errors on as values: raised in a worker, they arrive with its traceback as their message."""

    decoder: _Decoder

    def __getitem__(self, index: list[int]) -> Tensor | ValueError:
        try:
            return self.decoder[index]
        except ValueError as error:
            return error


def forks() -> bool:
    """Return whether a process that is started takes the memory of this one with it."""
    return (get_start_method(allow_none=True) or get_all_start_methods()[0]) == "fork"


def _leave_interrupts(worker: int) -> None:
    """Leave Ctrl-C, which a terminal sends to all processes, to the one that trains: it stops after its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def decode(
    path: str, shape: tuple[int, int, int], fit: Fit = "stretch", ground: str = "white", box: Box | None = None
) -> Tensor:
    """Return the part of an image that `box` cuts out, as uint8 of `shape`, on the CPU; ValueError where it cannot
    be read.
    """
    pixels = read_picture(path, shape[0], ground)
    if box is not None:
        left, top, right, bottom = box
        height, width = pixels.shape[1:]
        left, top = min(int(left * width), width - 1), min(int(top * height), height - 1)
        right, bottom = max(left + 1, round(right * width)), max(top + 1, round(bottom * height))
        pixels = pixels[:, top:bottom, left:right]
    return torch.from_numpy(fit_picture(pixels, shape[1:], fit, ground))
