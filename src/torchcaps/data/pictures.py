"""One picture from a file, as people have them, to the pixels that a model takes: the only place that decodes files.

Reading (`read_picture`) is apart from bringing to a size (`fit_picture`), and both depend on their arguments alone: so
a picture that is read for training and one that is classified later, elsewhere, get the same pixels.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from os import SEEK_CUR, PathLike
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np

from torchcaps.data import prepare
from torchcaps.data.prepare import Fit
from torchcaps.files import check_plain

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

File = str | PathLike[str] | IO[bytes]
PALETTE_MODES = frozenset({"P", "PA"})
DEEP_GREY = frozenset({"I;16", "I;16B", "I;16L", "I;16N", "I", "F"})  # of 16 bits or more
GREY_MODES = DEEP_GREY | {"1", "L", "LA"}
CONVERTED = frozenset({"CMYK", "HSV", "LAB", "YCbCr"})  # to RGB
WIDE_FORMATS = frozenset({"PNG", "PPM"})  # whose mode I is 16 bits, kept in 32
DEEP_TILES = re.compile("I;16|;16[BLN]")  # how Pillow names the layout of 16-bit pixels in a file
ORIENTATION = 0x0112  # of EXIF; 1 is upright, from 5 on width and height are exchanged
PNG_START = 8  # bytes before the first chunk; a chunk is its length, its name, and so many bytes and four more
# Identified by Pillow, and decoded by other programs, or (IPTC) by whatever format the pixels in it say that they have.
UNDECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})


class Facts(NamedTuple):
    """What the head of a picture's file says of it."""

    size: tuple[int, int]  # height and width, upright
    colour: bool
    alpha: bool  # has a measure of transparency, if only that of one colour
    deep: bool  # 16 bits a channel
    turned: bool  # by its EXIF orientation
    pages: int  # or frames
    mode: str  # Pillow's name of what a pixel holds


def read_picture(file: File, channels: int, ground: str = "white") -> np.ndarray:
    """Read the first page of a picture, upright, without transparency: uint8 [channels, h, w].

    It is turned as its EXIF orientation says, and what is transparent is laid on `ground`. One channel is grey (ITU-R
    601 luma of colours), three are red, green and blue, equal for a grey picture. Of 16 bits the upper eight are kept.

    Args:
        file: a path, or a file opened in binary mode.
        channels: 1 or 3.
        ground: an opaque colour, by name, as #rrggbb, or as Pillow's `ImageColor` reads it otherwise.

    Raises:
        ValueError: when the picture cannot be read, naming the file; when its pixels are of 32 bits, of which white is
            not known; for other `channels`, and for a `ground` that is no colour.
    """
    _check_request(channels, ground)
    with _opened(file) as image:
        return convert_picture(image, channels, ground)


def convert_picture(image: Image, channels: int, ground: str = "white") -> np.ndarray:
    """Return the pixels of a picture that Pillow holds, as `read_picture` gives those of a file: uint8 [channels, h,
    w].

    Raises:
        ValueError: as `read_picture`, and when what is left to decode of the picture cannot be, or only by another
            program, as of EPS.
    """
    under = _check_request(channels, ground)
    if image.format in UNDECODED:
        raise ValueError(f"a picture of the format {image.format} is not decoded: save it as PNG")
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # each decoder has errors of its own, see `_opened`
        raise ValueError(f"the picture cannot be decoded: {error or type(error).__name__}") from error
    plain, alpha = _separate(_upright(image), image.format)
    if alpha is not None and plain.mode == "L" and len(set(under)) > 1:
        plain = plain.convert("RGB")
    pixels = np.array(plain)
    if alpha is not None:
        pixels = _lay(pixels, np.array(alpha), under)
    if channels == 1 and pixels.ndim == 3:
        pixels = np.array(_from_array(pixels).convert("L"))
    elif channels == 3 and pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, 2)
    return np.ascontiguousarray(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1))


def fit_picture(pixels: np.ndarray, size: tuple[int, int], fit: Fit = "stretch", ground: str = "white") -> np.ndarray:
    """Bring a picture uint8 [c, h, w] to `size` (height, width): uint8 [c, *size].

    Args:
        pixels: of 1 or 3 channels; of others where nothing is padded.
        size: in pixels.
        fit: stretch (proportions change), crop (the largest middle part of the wanted proportions), or pad (the whole
            picture in the middle of `ground`; of an odd rest the larger part is right and below).
        ground: an opaque colour, as in `read_picture`.

    Raises:
        ValueError: for another `fit`, and for a `ground` that is no colour.
    """
    colour = ground_colour(ground, len(pixels)) if fit == "pad" else (0,)
    return prepare.fit(pixels, size, fit, np.array(colour, np.uint8)[:, None, None], _resize)


def describe_picture(file: File) -> Facts:
    """Read the head of a picture's file, and no pixels where its format lets that be.

    Raises:
        ValueError: when it cannot be read, naming the file.
    """
    with _opened(file) as image:
        deep = image.mode in DEEP_GREY or any(DEEP_TILES.search(str(tile[3])) for tile in image.tile)
        orientation = _orientation(image)
        colour, alpha, mode = _has_colour(image), image.has_transparency_data, image.mode
        pages = getattr(image, "n_frames", 1)
        width, height = image.size
        if image.format == "TIFF":  # some versions of Pillow exchange the sides when a TIFF is opened, some later
            if orientation in range(5, 9):
                image.load()
                width, height = _upright(image).size
        elif orientation in range(5, 9):
            width, height = height, width
        return Facts((height, width), colour, alpha, deep, orientation in range(2, 9), pages, mode)


def ground_colour(ground: str, channels: int) -> tuple[int, ...]:
    """Return the colour that `ground` names, 0 .. 255 for each of `channels`: 1 (its grey, as that of pictures) or 3.

    Raises:
        ValueError: when it is no opaque colour, and for other `channels`.
    """
    from PIL import ImageColor

    if channels not in (1, 3):
        raise ValueError(f"data.ground is {ground!r}, of 1 or 3 channels, but the images have {channels}")
    try:
        red, green, blue, *transparent = ImageColor.getrgb(ground)
        if transparent:
            raise ValueError("it has a fourth number, its opacity")
        grey = ImageColor.getcolor(ground, "L")
    except ValueError as error:
        raise ValueError(
            f"data.ground is {ground!r}; it must be an opaque colour, such as white, black or #808080"
        ) from error
    assert isinstance(grey, int)
    return (grey,) if channels == 1 else (red, green, blue)


def _check_request(channels: int, ground: str) -> tuple[int, ...]:
    """Return the colour of `ground`, where a picture can be read in this way."""
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}: pictures are read with 1 (grey) or 3 (red, green, blue)")
    return ground_colour(ground, 3)


@cache
def suffixes() -> frozenset[str]:
    """Return the endings, in lower case, of the files that are read: all that Pillow decodes by itself."""
    from PIL import Image

    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in _formats())


def _formats() -> tuple[str, ...]:
    """Return the names of the formats that are read, in the order in which Pillow tries them."""
    from PIL import Image

    Image.preinit()  # the commonest come first
    Image.init()
    return tuple(kind for kind in Image.ID if kind not in UNDECODED)


@contextmanager
def _opened(file: File) -> Iterator[ImageFile]:
    """Return the first page of a picture, whose head has been read; closed again at the end. All errors name the
    file.
    """
    from PIL import Image

    try:
        if isinstance(file, str | PathLike):
            check_plain(Path(file))  # to open a pipe would wait for ever
        with Image.open(file, formats=_formats()) as image:  # by what is in it, whatever its name says
            yield image
    except MemoryError:
        raise
    except Exception as error:  # each format's decoder has errors of its own: struct.error, SyntaxError, zlib.error ...
        name = file if isinstance(file, str | PathLike) else getattr(file, "name", "that was given")
        raise ValueError(f"cannot read the image {name}: {error or type(error).__name__}") from error


def _upright(image: Image) -> Image:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def _orientation(image: ImageFile) -> int:
    """Return the number that EXIF or XMP gives; of a PNG without decoding its pixels where nothing but pixels
    follows them.
    """
    from PIL.Image import Image

    known = image.format == "PNG" and image.fp is not None and _ends_in_pixels(image.fp)
    exif = Image.getexif(image) if known else image.getexif()
    return exif.get(ORIENTATION, 1)


def _ends_in_pixels(file: IO[bytes]) -> bool:
    """Return whether a PNG says nothing of itself behind its pixels; the position in `file` stays."""
    position, pixels = file.tell(), False
    file.seek(PNG_START)
    try:
        while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
            pixels = pixels or head[4:] == b"IDAT"
            if pixels and head[4:] not in (b"IDAT", b"fcTL", b"fdAT"):
                return False
            file.seek(int.from_bytes(head[:4]) + 4, SEEK_CUR)
        return True
    finally:
        file.seek(position)


def _has_colour(image: Image) -> bool:
    """Return whether a pixel may be other than grey; of a palette, whether one of its colours is."""
    if image.mode in PALETTE_MODES:
        entries = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        return bool((entries != entries[:, :1]).any())
    return image.mode not in GREY_MODES


def _separate(image: Image, kind: str | None) -> tuple[Image, Image | None]:
    """Return a decoded picture of a format in mode L or RGB, and its opacity in mode L where it has any."""
    if image.mode in DEEP_GREY:
        return _narrow(image, kind)
    if image.mode == "LAB":
        return _from_lab(image), None
    colour = _has_colour(image)
    if image.has_transparency_data:
        split = image.convert("RGBA").split()
        return _merge(split[:3]) if colour else split[0], split[3]
    return image.convert("RGB" if colour else "L"), None


def _narrow(image: Image, kind: str | None) -> tuple[Image, Image | None]:
    """Return the upper eight bits of a grey picture of 16, and its opacity."""
    if image.mode == "F" or (image.mode == "I" and kind not in WIDE_FORMATS):
        raise ValueError(f"mode {image.mode} has 32 bits, and which value is white is not known: save it with 8 or 16")
    values = np.array(image).astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() <= 65535:
        raise ValueError(f"mode {image.mode} with values {values.min()} .. {values.max()}: save it with 8 or 16 bits")
    transparent = image.info.get("transparency")
    alpha = None if transparent is None else _from_array(np.where(values == transparent, 0, 255).astype(np.uint8))
    return _from_array((values >> 8).astype(np.uint8)), alpha


def _from_lab(image: Image) -> Image:
    from PIL import ImageCms

    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    assert converted is not None  # only a conversion in place returns nothing
    return converted


def _merge(bands: tuple[Image, ...]) -> Image:
    from PIL import Image

    return Image.merge("RGB", bands)


def _from_array(pixels: np.ndarray) -> Image:
    from PIL import Image

    return Image.fromarray(pixels)


def _lay(pixels: np.ndarray, alpha: np.ndarray, under: tuple[int, ...]) -> np.ndarray:
    """Return pixels [h, w] or [h, w, 3] over a colour, by their opacity [h, w]; all uint8, rounded to the nearest."""
    grey = pixels.ndim == 2
    ground = np.array(under[0] if grey else under, np.uint32)
    opacity = (alpha if grey else alpha[..., None]).astype(np.uint32)
    return ((pixels * opacity + ground * (255 - opacity) + 127) // 255).astype(np.uint8)


def _resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels resized, bilinear, with antialiasing where it shrinks, in whole numbers: the same pixels on
    every machine, without torch.

    Each differs by at most one level from those of `images.resize`, which serves arrays on any device.
    """
    from PIL.Image import Resampling

    if pixels.shape[1:] == tuple(size):
        return pixels
    width_height = size[1], size[0]
    planes = [_from_array(plane).resize(width_height, Resampling.BILINEAR) for plane in np.ascontiguousarray(pixels)]
    return np.stack([np.array(plane) for plane in planes])


def walk(folder: Path | str, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield the files in and below `folder`, by name, those of a folder before those of the folders in it.

    What is hidden is passed over; links are followed, but none to a folder `above` again.

    Raises:
        OSError: for a folder that may not be read.
    """
    with os.scandir(folder) as entries:
        found = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    yield from (os.path.join(folder, name) for name, is_folder in found if not is_folder)
    above |= {os.path.realpath(folder)}
    for name, is_folder in found:
        path = os.path.join(folder, name)
        if is_folder and os.path.realpath(path) not in above:
            yield from walk(path, above)
