"""Folders of image files: decoded into memory where they fit, else by worker processes whenever they are needed.

A folder is PATH/train/CLASS/*, PATH/test/CLASS/* and, if wanted, PATH/validation/CLASS/* (or val); or PATH/CLASS/*, of
which a stratified fifth, always the same, becomes the test split.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from torchcaps.config import DataConfig
from torchcaps.data.images import Images, Source, check_labels, resize
from torchcaps.data.readers import Splits, channels_first
from torchcaps.data.splits import stratified

if TYPE_CHECKING:
    from PIL.Image import Image

RESIDENT_LIMIT = 2 * 2**30  # bytes of all decoded splits together; above it the images are streamed
TEST_SHARE, TEST_SEED = 0.2, 0
SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
GREY_MODES = frozenset({"1", "L", "LA"})
DEEP_MODES = ("F", "I")  # and "I;16": more than 8 bits, which a conversion would clip
Box = tuple[float, float, float, float]  # left, top, right and bottom, in shares of width and height
DECODE_CHUNK = 64  # images that a worker hands over at one time when all are decoded at once


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images on disk, decoded whenever they are fetched.

    They become grey where `shape` has one channel, else RGB, without transparency; and are resized to `shape`, whatever
    their proportions (`images.resize`).
    """

    paths: tuple[str, ...]
    labels: Tensor  # int64 [n]
    classes: tuple[str, ...]
    shape: tuple[int, int, int]  # channels, height, width
    workers: int = 0  # processes that decode ahead in `stream`; 0 decodes in this one
    boxes: tuple[Box | None, ...] = ()  # what is cut out of each image first; empty: nothing of any

    def __post_init__(self) -> None:
        if len(self.paths) != len(self.labels):
            raise ValueError(f"{len(self.paths)} files have {len(self.labels)} labels, not one each")
        if self.boxes and len(self.boxes) != len(self.paths):
            raise ValueError(f"{len(self.paths)} files have {len(self.boxes)} boxes, not one each, or None")
        check_labels(self.labels, self.classes)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shown(self) -> int | None:
        return 1

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

    def load(self) -> Images:
        """All of them, decoded into memory."""
        pixels = torch.empty(len(self), *self.shape, dtype=torch.uint8, device=self.labels.device)
        chunks = torch.arange(len(self)).split(DECODE_CHUNK)
        for rows, decoded in zip(pixels.split(DECODE_CHUNK), self.stream(chunks), strict=True):
            rows.copy_(decoded)
        return Images(pixels, self.labels, self.classes)

    @property
    def _decoder(self) -> _Decoder:
        return _Decoder(self.paths, self.boxes, self.shape)


@dataclass(frozen=True)
class _Decoder(Dataset):
    """Lists of indices to their images: what a worker process holds of `ImageFiles`.

    No tensor among it, so that it may be sent to a process even from a CUDA device.
    """

    paths: tuple[str, ...]
    boxes: tuple[Box | None, ...]
    shape: tuple[int, int, int]

    def __getitem__(self, index: list[int]) -> Tensor:
        pixels = torch.empty(len(index), *self.shape, dtype=torch.uint8)
        for row, i in zip(pixels, index, strict=True):
            row.copy_(decode(self.paths[i], self.shape, self.boxes[i] if self.boxes else None))
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


def decode(path: str, shape: tuple[int, int, int], box: Box | None = None) -> Tensor:
    """The part of an image that `box` cuts out, as uint8 of `shape`, on the CPU; ValueError where it cannot be read."""
    image = _open(path, decoded=True).convert("L" if shape[0] == 1 else "RGB")
    if box is not None:
        left, top, right, bottom = box
        width, height = image.size
        left, top = min(int(left * width), width - 1), min(int(top * height), height - 1)
        right, bottom = max(left + 1, round(right * width)), max(top + 1, round(bottom * height))
        image = image.crop((left, top, right, bottom))
    return resize(channels_first(np.array(image)[None]), shape[1:])[0]


def _open(path: str, decoded: bool) -> Image:
    """The image at `path`, of which only the head has been read unless `decoded`; its file is closed again."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if decoded:
                image.load()
    except Exception as error:  # each format's decoder has errors of its own: struct.error, SyntaxError, zlib.error ...
        raise ValueError(
            f"cannot read the image {path}: {error} (--data.skip-unreadable leaves such images out)"
        ) from error
    if image.mode.startswith(DEEP_MODES):
        raise ValueError(f"cannot read the image {path}: mode {image.mode}, but only images of 8 bits are read")
    return image


def read_folder(path: Path, config: DataConfig) -> Splits:
    """The splits of the image folder `path`; see the head of this file.

    The images become grey when the first training image of every class is, else RGB. They are resized to
    `config.image_size` where it is given; without it all must have one size. Hidden files and folders are passed over.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: when it or a class holds no images, when a split has a class that training lacks, when an image
            cannot be read, and when sizes differ without an `image_size`.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}: give the path of an image folder as folder:PATH")
    listed = _list_splits(path)
    if config.skip_unreadable:
        listed = {name: readable(part) for name, part in listed.items()}
    train = listed["train"]
    channels = 1 if _all_grey(train) else 3
    if config.image_size is None:
        height, width = _common_size([file for part in listed.values() for file in part.paths])
    else:
        height = width = config.image_size
    shape = channels, height, width
    splits = {name: replace(part, shape=shape, workers=workers(len(part))) for name, part in listed.items()}
    if sum(map(len, splits.values())) * channels * height * width <= RESIDENT_LIMIT:
        resident: dict[str, Source] = {name: part.load() for name, part in splits.items()}
        return Splits(**resident)
    return Splits(**splits)


def readable(files: ImageFiles) -> ImageFiles:
    """Those of `files` that can be read; the others are named in the log. Each is decoded once for that."""
    bad: list[int] = []
    for index, path in enumerate(files.paths):
        try:
            _open(path, decoded=True)
        except ValueError:
            bad.append(index)
    if not bad:
        return files
    if len(bad) == len(files):
        raise ValueError(f"none of the {len(bad)} images beside {files.paths[0]} can be read")
    names = ", ".join(files.paths[index] for index in bad)
    logging.getLogger("torchcaps").warning("torchcaps: left out %d unreadable image(s): %s", len(bad), names)
    left = set(bad)
    return files.subset(torch.tensor([index for index in range(len(files)) if index not in left]))


def workers(images: int) -> int:
    """Worker processes worth starting for so many images: none for a few hundred, else one per core, up to eight."""
    return 0 if images < 512 else min(8, os.cpu_count() or 1)


def _list_splits(path: Path) -> dict[str, ImageFiles]:
    """The files of each split by its name in `Splits`; their shape is not known yet."""
    folders = {folder.name: folder for folder in _folders(path)}
    if "train" not in folders and "test" not in folders:
        whole = _list_classes(path, None)
        train, test = stratified(whole.labels, round(TEST_SHARE * len(whole)), TEST_SEED)
        return {"train": whole.subset(train), "test": whole.subset(test)}
    for name in ("train", "test"):
        if name not in folders:
            raise ValueError(f"{path} has no folder {name!r} beside {', '.join(sorted(folders))}")
    train = _list_classes(folders["train"], None)
    splits = {"train": train, "test": _list_classes(folders["test"], train.classes)}
    if given := folders.get("validation", folders.get("val")):
        splits["validation"] = _list_classes(given, train.classes)
    return splits


def _list_classes(folder: Path, known: tuple[str, ...] | None) -> ImageFiles:
    """The images of the class folders in `folder`, in the order of their names; labels as in `known`, where given."""
    files = {child.name: list_files(child) for child in _folders(folder)}
    classes = known or tuple(files)
    for name, found in files.items():
        if name not in classes:
            raise ValueError(f"class {name!r} of {folder} has no folder among the training images")
        if not found and known is None:
            raise ValueError(f"the class folder {folder / name} holds no images")
    paths = tuple(file for found in files.values() for file in found)
    if not paths:
        raise ValueError(f"{folder} holds no images: they are looked for in {folder}/CLASS/*.png, .jpg, ...")
    index = {name: label for label, name in enumerate(classes)}
    labels = [index[name] for name, found in files.items() for _ in found]
    return ImageFiles(paths, torch.tensor(labels), classes, shape=(0, 0, 0))


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def list_files(folder: Path) -> list[str]:
    """The image files in `folder`, by name."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    return [str(folder / name) for name in names if os.path.splitext(name)[1].lower() in SUFFIXES]


def _all_grey(train: ImageFiles) -> bool:
    """Whether the first image of every class is grey."""
    firsts = dict(zip(reversed(train.labels.tolist()), reversed(train.paths), strict=True))
    return all(_open(path, decoded=False).mode in GREY_MODES for path in firsts.values())


def _common_size(paths: Sequence[str]) -> tuple[int, int]:
    """Height and width of all the images, of which only the heads are read."""
    first = _open(paths[0], decoded=False).size
    for path in paths:
        if (size := _open(path, decoded=False).size) != first:
            raise ValueError(
                f"{path} is {size[0]}x{size[1]} pixels, {paths[0]} is {first[0]}x{first[1]}: "
                "give --data.image-size to resize all images to one size"
            )
    width, height = first
    return height, width
