"""Single pictures as people have them: turned, transparent, deep, of several pages, in the colours of printers."""

from __future__ import annotations

import io
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchcaps.config import Config, DataConfig
from torchcaps.data import load_data
from torchcaps.data.images import resize
from torchcaps.data.pictures import (
    convert_picture,
    describe_picture,
    fit_picture,
    ground_colour,
    read_picture,
    suffixes,
)
from torchcaps.train.check import check_config

STORED = {  # how an upright picture has to be turned for its orientation to turn it back
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def saved(image: Image.Image, kind: str = "PNG", **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def pixels(image: Image.Image, channels: int, ground: str = "white", kind: str = "PNG", **options) -> list:
    """Of the first row, each pixel's channels."""
    return read_picture(saved(image, kind, **options), channels, ground)[:, 0].T.tolist()


def row(*values, mode: str) -> Image.Image:
    """A picture of one row."""
    return Image.fromarray(np.array([values], np.uint8), mode)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(colour: int, values: list[int], behind: bytes = b"") -> io.BytesIO:
    """A PNG of one pixel of 16 bits, with chunks behind its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" + np.array(values, ">u2").tobytes()))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + header + body + behind + chunk(b"IEND", b""))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 100}), ("PNG", {}), ("TIFF", {}),
                                               ("WEBP", {"lossless": True})])  # fmt: skip
def test_orientation_is_undone(kind, options, orientation):
    upright = np.zeros((40, 24), np.uint8)
    upright[:8], upright[:, :8] = 255, 128
    image = Image.fromarray(upright)
    if orientation in STORED:
        image = image.transpose(STORED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = saved(image, kind, exif=exif, **options)
    facts = describe_picture(file)
    assert facts.size == (40, 24) and facts.turned == (orientation > 1)
    file.seek(0)
    read = read_picture(file, 1)[0]
    assert read.shape == (40, 24) and np.abs(read.astype(int) - upright).max() <= 3


def test_orientation_behind_the_pixels_of_a_png():
    exif = Image.Exif()
    exif[0x0112] = 3
    file = png(0, [256], behind=chunk(b"eXIf", exif.tobytes()[6:]))
    assert describe_picture(file).turned
    assert not describe_picture(png(0, [256])).turned


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (row([10, 10, 10, 255], [10, 10, 10, 102], [10, 10, 10, 0], mode="RGBA"), {}),
        (row([10, 255], [10, 102], [10, 0], mode="LA"), {}),
        (Image.frombytes("P", (3, 1), bytes([0, 1, 2])), {"transparency": bytes([255, 102, 0])}),
    ],
    ids=["RGBA", "LA", "P"],
)
def test_alpha_is_laid_on_the_ground(image, options):
    if image.mode == "P":
        image.putpalette([10] * 9)
    assert describe_picture(saved(image, **options)).alpha
    assert pixels(image, 1, **options) == [[10], [157], [255]]
    assert pixels(image, 1, "black", **options) == [[10], [4], [0]]
    assert pixels(image, 3, "#ff0000", **options) == [[10, 10, 10], [157, 4, 4], [255, 0, 0]]


@pytest.mark.parametrize(
    ("image", "transparency", "expected"),
    [
        (row(1, 2, 3, mode="L"), 2, [[1] * 3, [255] * 3, [3] * 3]),
        (row([1, 2, 3], [4, 5, 6], mode="RGB"), (4, 5, 6), [[1, 2, 3], [255] * 3]),
        (Image.fromarray(np.array([[512, 513]], np.uint16)), 513, [[2] * 3, [255] * 3]),
    ],
    ids=["L", "RGB", "I;16"],
)
def test_one_transparent_colour_is_laid_on_the_ground(image, transparency, expected):
    assert pixels(image, 3, transparency=transparency) == expected


def test_opaque_pictures_stay_exactly_as_they_are():
    values = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    assert np.array_equal(read_picture(saved(Image.fromarray(values)), 3), values.transpose(2, 0, 1))
    assert np.array_equal(read_picture(saved(Image.fromarray(values[..., 0])), 1)[0], values[..., 0])
    assert np.array_equal(read_picture(saved(Image.fromarray(values[..., 0])), 3), [values[..., 0]] * 3)
    grey = np.array(Image.fromarray(values).convert("L"))
    assert np.array_equal(read_picture(saved(Image.fromarray(values)), 1)[0], grey)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_of_grey_keep_the_upper_eight(kind):
    image = Image.fromarray(np.array([[0, 255, 256, 32768, 65535]], np.uint16))
    assert describe_picture(saved(image, kind)).deep
    assert pixels(image, 1, kind=kind) == [[0], [0], [1], [128], [255]]


def test_sixteen_bits_of_colour_are_noticed():
    assert describe_picture(png(2, [256, 512, 65535])).deep
    assert read_picture(png(2, [256, 512, 65535]), 3).ravel().tolist() == [1, 2, 255]
    bitmap = bytearray(saved(Image.new("RGB", (2, 2)), "BMP").getvalue())
    bitmap[28:30] = struct.pack("<H", 16)  # five or six bits a channel: 16 a pixel
    assert not describe_picture(io.BytesIO(bytes(bitmap))).deep


@pytest.mark.parametrize("image", [Image.new("F", (3, 2), 0.5), Image.new("I", (3, 2), 300)], ids=["F", "I"])
def test_pixels_of_32_bits_are_refused(image, tmp_path):
    image.save(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match=r"deep\.tif: mode .* has 32 bits, and which value is white is not known"):
        read_picture(tmp_path / "deep.tif", 1)


@pytest.mark.parametrize(("kind", "pages"), [("GIF", 3), ("TIFF", 3), ("WEBP", 3), ("PNG", 3)])
def test_first_of_several_pages(kind, pages):
    frames = [Image.new("RGB", (4, 3), (40 * number, 0, 0)) for number in range(1, pages + 1)]
    options = {"lossless": True} if kind == "WEBP" else {}
    file = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert describe_picture(file).pages == pages
    file.seek(0)
    assert read_picture(file, 3)[:, 0, 0].tolist() == [40, 0, 0]


@pytest.mark.parametrize(("mode", "kind", "fill", "expected"), [
    ("CMYK", "JPEG", (255, 0, 0, 0), (0, 255, 255)), ("CMYK", "TIFF", (255, 0, 0, 0), (0, 255, 255)),
    ("LAB", "TIFF", (255, 128, 128), (255,) * 3), ("YCbCr", "TIFF", (255, 128, 128), (255,) * 3)])  # fmt: skip
def test_other_colour_spaces_become_rgb(mode, kind, fill, expected):
    image = Image.new(mode, (8, 8), fill)
    assert describe_picture(saved(image, kind)).colour
    assert read_picture(saved(image, kind), 3)[:, 4, 4].tolist() == pytest.approx(expected, abs=2)


def test_palette_is_grey_where_all_its_colours_are():
    image = Image.frombytes("P", (3, 1), bytes([0, 1, 2]))
    image.putpalette([7, 7, 7, 90, 90, 90, 200, 200, 200])
    assert not describe_picture(saved(image)).colour and pixels(image, 1) == [[7], [90], [200]]
    image.putpalette([7, 7, 7, 90, 90, 90, 200, 200, 0])
    assert describe_picture(saved(image)).colour and pixels(image, 3)[2] == [200, 200, 0]


def test_proportions():
    tall = np.arange(8 * 4, dtype=np.uint8).reshape(1, 8, 4)
    assert fit_picture(tall, (6, 6)).shape == (1, 6, 6)
    assert np.array_equal(fit_picture(tall, (4, 4), "crop"), tall[:, 2:6])
    padded = fit_picture(tall, (8, 9), "pad", "#0a0a0a")
    assert np.array_equal(padded[:, :, 2:6], tall)
    assert (padded[:, :, :2] == 10).all() and (padded[:, :, 6:] == 10).all(), "the larger part is on the right"
    for fit in ("stretch", "crop", "pad"):
        assert np.array_equal(fit_picture(tall, (8, 4), fit), tall)
        assert fit_picture(np.zeros((3, 500, 1), np.uint8), (4, 4), fit).shape == (3, 4, 4)
    assert (fit_picture(np.zeros((3, 500, 1), np.uint8), (4, 4), "pad", "white")[:, :, [0, 2, 3]] == 255).all()


def test_what_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "no.png").write_bytes(b"text")
    for read in (describe_picture, lambda path: read_picture(path, 3)):
        with pytest.raises(ValueError, match=r"^cannot read the image .*no\.png: "):
            read(tmp_path / "no.png")
    with pytest.raises(ValueError, match="channels is 4: pictures are read with 1"):
        read_picture(tmp_path / "no.png", 4)
    for wrong in ("whit", "#ffffff00"):
        with pytest.raises(ValueError, match=rf"data\.ground is '{wrong}'; it must be an opaque colour"):
            ground_colour(wrong, 3)
    for begin in (load_data, lambda data: check_config(Config(data=data))):  # before anything is read or trained
        with pytest.raises(ValueError, match=r"data\.ground is 'whit'; it must be an opaque colour"):
            begin(DataConfig("digits", ground="whit"))
    with pytest.raises(ValueError, match=r"data\.fit is 'squash': it must be stretch, crop or pad"):
        fit_picture(np.zeros((1, 2, 2), np.uint8), (4, 4), "squash")  # pyright: ignore[reportArgumentType]


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def iptc_field(number: int, content: bytes) -> bytes:
    return b"\x1c" + bytes([3 if number < 255 else 8, number % 245]) + struct.pack(">H", len(content)) + content


IPTC = (  # whose pixels, said to be a JPEG's, are an EPS
    iptc_field(20, b"\0\x08") + iptc_field(30, b"\0\x08") + iptc_field(60, b"\x01\0") + iptc_field(120, b"\x05")
    + iptc_field(255, EPS)
)  # fmt: skip


@pytest.mark.parametrize("content", [EPS, IPTC], ids=["EPS", "IPTC"])
def test_no_other_program_is_started_for_a_picture_whatever_it_is_called(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def started(*args, **options):
        raise AssertionError(f"{args} was started")

    (tmp_path / "cat.png").write_bytes(content)
    monkeypatch.setattr("PIL.EpsImagePlugin.has_ghostscript", lambda: True)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    monkeypatch.setattr(subprocess, "Popen", started)
    for read in (describe_picture, lambda path: read_picture(path, 3)):
        with pytest.raises(ValueError, match=r"cat\.png: cannot identify image file"):
            read(tmp_path / "cat.png")
    Image.init()
    with pytest.raises(ValueError, match=r"format (EPS|IPTC) is not decoded: save it as PNG"):
        convert_picture(Image.open(io.BytesIO(content)), 3)


def test_a_picture_that_is_open_and_cut_off_is_a_value_error():
    content = saved(Image.new("RGB", (64, 64), "red"), "JPEG").getvalue()
    with pytest.raises(ValueError, match=r"the picture cannot be decoded: .*[Tt]runcated"):
        convert_picture(Image.open(io.BytesIO(content[:-20])), 3)


def test_endings_are_those_that_pillow_decodes_itself():
    assert {".png", ".jpg", ".jpeg", ".jfif", ".gif", ".tif", ".tga", ".webp", ".bmp", ".pgm"} <= suffixes()
    assert not {".pdf", ".eps", ".wmf", ".mpg", ".h5", ".txt"} & suffixes()


@pytest.mark.parametrize(("size", "wanted"), [((37, 53), (28, 28)), ((8, 8), (28, 20)), ((31, 64), (64, 31))])
def test_a_picture_is_resized_as_arrays_are_up_to_one_level(size, wanted):
    pixels = np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8)
    of_arrays = resize(torch.from_numpy(pixels)[None], wanted)[0].numpy()
    assert np.abs(fit_picture(pixels, wanted).astype(int) - of_arrays).max() <= 1
