"""Pictures in files: decoded into memory where they fit, else once into a file that is mapped (`data/cache.py`).

A folder is PATH/train/CLASS/**, PATH/test/CLASS/** and, if wanted, PATH/validation/CLASS/** (`tree.SPLITS` has other
names of these); or PATH/CLASS/**, of which a stratified fifth, always the same, becomes the test split.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from torchcaps.config import DataConfig
from torchcaps.data.cache import open_cached
from torchcaps.data.images import Fit, Images, Splits, check_labels, shown
from torchcaps.data.notes import say, some
from torchcaps.data.pictures import fit_picture, read_picture
from torchcaps.data.splits import strata, stratified
from torchcaps.data.survey import choose_channels, common_size, say_facts, survey
from torchcaps.data.tree import list_tree

RESIDENT_LIMIT = 2 * 2**30  # bytes of all decoded splits together; above it they are mapped
TEST_SHARE, TEST_SEED = 0.2, 0
Box = tuple[float, float, float, float]  # left, top, right and bottom, in shares of width and height
DECODE_CHUNK = 64  # images that a worker hands over at one time when all are decoded at once


class Form(NamedTuple):
    """What files become: uint8 of `shape`, in the way that `pictures.read_picture` and `fit_picture` describe."""

    shape: tuple[int, int, int]  # channels (1 or 3), height, width
    fit: Fit = "stretch"
    ground: str = "white"


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images on disk, decoded whenever they are fetched."""

    paths: tuple[str, ...]
    labels: Tensor  # int64 [n], or label sets uint8 [n, classes] of 0 and 1
    classes: tuple[str, ...]
    form: Form
    workers: int = 0  # processes that decode ahead in `stream`; 0 decodes in this one
    boxes: tuple[Box | None, ...] = ()  # what is cut out of each image first; empty: nothing of any

    def __post_init__(self) -> None:
        if self.boxes and len(self.boxes) != len(self.paths):
            raise ValueError(f"{len(self.paths)} files have {len(self.boxes)} boxes, not one each, or None")
        check_labels(self.labels, self.classes, len(self.paths))

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.form.shape

    @property
    def shown(self) -> int | None:
        return shown(self.labels)

    def fetch(self, indices: Tensor) -> Tensor:
        """uint8 [b, c, h, w] of `indices` int64 [b]; ValueError, naming the file, where one cannot be read."""
        return self._decoder[indices.tolist()].to(self.labels.device, non_blocking=True)

    def stream(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """`fetch` of each of `batches`; each worker decodes a whole batch, two batches ahead."""
        if not self.workers:
            yield from map(self.fetch, batches)
            return
        device = self.labels.device
        loader = DataLoader(
            _Guarded(self._decoder),
            batch_size=None,
            sampler=[batch.tolist() for batch in batches],
            num_workers=min(self.workers, max(1, len(batches))),
            pin_memory=device.type == "cuda",
            worker_init_fn=_leave_interrupts,
            generator=torch.Generator(),  # else each pass would draw from the global generator
        )
        for decoded in loader:
            if isinstance(decoded, ValueError):
                raise decoded
            yield decoded.to(device, non_blocking=True)

    def targets(self, indices: Tensor) -> Tensor:
        return self.labels[indices.to(self.labels.device, non_blocking=True)]

    def subset(self, indices: Tensor) -> ImageFiles:
        chosen = indices.tolist()
        paths, boxes = (tuple(each[index] for index in chosen) if each else () for each in (self.paths, self.boxes))
        return replace(self, paths=paths, boxes=boxes, labels=self.labels[indices.to(self.labels.device)])

    def to(self, device: torch.device | str) -> ImageFiles:
        return replace(self, labels=self.labels.to(device))

    def decoded(self) -> Iterator[Tensor]:
        """All of them, in their order: uint8 [up to `DECODE_CHUNK`, c, h, w] at one time."""
        return self.stream(torch.arange(len(self)).split(DECODE_CHUNK))

    def load(self) -> Images:
        """All of them, decoded into memory."""
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


def _leave_interrupts(worker: int) -> None:
    """Leave Ctrl-C, which a terminal sends to all processes, to the one that trains: it stops after its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def decode(
    path: str, shape: tuple[int, int, int], fit: Fit = "stretch", ground: str = "white", box: Box | None = None
) -> Tensor:
    """The part of an image that `box` cuts out, as uint8 of `shape`, on the CPU; ValueError where it cannot be read."""
    pixels = read_picture(path, shape[0], ground)
    if box is not None:
        left, top, right, bottom = box
        height, width = pixels.shape[1:]
        left, top = min(int(left * width), width - 1), min(int(top * height), height - 1)
        right, bottom = max(left + 1, round(right * width)), max(top + 1, round(bottom * height))
        pixels = pixels[:, top:bottom, left:right]
    return torch.from_numpy(fit_picture(pixels, shape[1:], fit, ground))


def read_folder(path: Path, config: DataConfig) -> Splits:
    """The splits of the image folder `path`; see the head of this file, and `assemble`.

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
    """A training and a test split, where none were given: a stratified fifth is the test split, always the same."""
    train, test = stratified(strata(whole.labels), round(TEST_SHARE * len(whole)), TEST_SEED)
    return {"train": whole.subset(train), "test": whole.subset(test)}


def assemble(listed: dict[str, ImageFiles], config: DataConfig) -> Splits:
    """The splits of listed files, of which only paths and labels are known: in memory, or mapped.

    They become colour when a training picture has colour and grey otherwise, unless `config.colour` says which. They
    are brought to `config.image_size`, where it is given, as `config.fit` says; without it all must have one size.
    What that changes, beyond the size, is said in the log.

    Raises:
        ValueError: when an image cannot be read (`config.skip_unreadable` leaves those out, and names them), when sizes
            differ without an `image_size`, and when `config.ground` is no colour.
    """
    listed, facts = survey(listed, config.skip_unreadable)
    channels = choose_channels(facts, config)
    side = config.image_size
    size = common_size(listed, facts) if side is None else (side, side)
    say_facts(listed, facts, size, config)
    form = Form((channels, *size), config.fit, config.ground)
    splits = {name: replace(part, form=form, workers=workers(len(part))) for name, part in listed.items()}
    if sum(map(len, splits.values())) * channels * size[0] * size[1] <= RESIDENT_LIMIT:
        return Splits(**{name: part.load() for name, part in splits.items()})
    return Splits(**open_cached(splits))


def workers(images: int) -> int:
    """Worker processes worth starting for so many images: none for a few hundred, else one per core, up to eight."""
    return 0 if images < 512 else min(8, os.cpu_count() or 1)
