"""The file of decoded pictures: made once, anew when a picture changes, whole or not at all, never unpickled."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchcaps.data import cache, load
from torchcaps.data import files as reading
from torchcaps.data.cache import Mapped, open_cached
from torchcaps.data.files import Form, ImageFiles
from torchcaps.data.items import Floats
from torchcaps.data.load import moments


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageFiles:
    monkeypatch.setenv("TORCHCAPS_CACHE", str(tmp_path / "the cache"))
    values = np.random.default_rng(0).integers(0, 256, (9, 4, 5, 3), dtype=np.uint8)
    for number, pixels in enumerate(values):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    paths = tuple(str(tmp_path / f"{number}.png") for number in range(9))
    return ImageFiles(paths, torch.arange(9) % 2, ("ant", "bee"), Form((3, 4, 5)))


def opened(files: ImageFiles) -> Mapped:
    found = open_cached({"train": files})["train"]
    assert isinstance(found, Mapped)
    return found


def test_same_as_in_memory(files):
    mapped, resident = opened(files), files.load()
    batches = torch.tensor([3, 1, 8, 0, 0, 7, 2]).split(3)
    for ours, theirs in zip(mapped.stream(batches), resident.stream(batches), strict=True):
        assert torch.equal(ours, theirs)
    part, other = (source.subset(torch.tensor([5, 2, 8])) for source in (mapped, resident))
    assert torch.equal(part.fetch(torch.tensor([2, 0])), other.fetch(torch.tensor([2, 0])))
    assert torch.equal(part.targets(torch.arange(3)), other.targets(torch.arange(3)))
    assert not list(mapped.stream([]))


def test_decoded_once_and_anew_when_a_picture_changes(files, monkeypatch):
    first = opened(files).fetch(torch.tensor([4]))
    decoded = []
    decode = reading.decode
    monkeypatch.setattr(reading, "decode", lambda *args, **options: decoded.append(args[0]) or decode(*args, **options))
    assert torch.equal(opened(files).fetch(torch.tensor([4])), first) and not decoded
    Image.fromarray(np.full((4, 5, 3), 7, np.uint8)).save(files.paths[4])
    os.utime(files.paths[4], ns=(0, 1))
    assert opened(files).fetch(torch.tensor([4])).unique().tolist() == [7] and len(decoded) == 9


def test_every_option_of_decoding_has_its_own_file(files):
    forms = [Form((3, 4, 5)), Form((1, 4, 5)), Form((3, 5, 4)), Form((3, 4, 5), "pad"), Form((3, 4, 5), ground="black")]
    variants = [*(replace(files, form=form) for form in forms), replace(files, boxes=((0, 0, 1, 0.5),) * 9)]
    assert len({cache.digest(each) for each in variants}) == len(variants)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


@pytest.mark.parametrize("damage", ["cut", "shape", "pickled"])
def test_damaged_file_is_made_anew(files, tmp_path, monkeypatch, damage):
    monkeypatch.chdir(tmp_path)
    expected = opened(files).fetch(torch.arange(9))
    (path,) = (tmp_path / "the cache/pictures").glob("*.npy")
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-1])
        case "shape":
            np.save(path, np.zeros((9, 3, 5, 4), np.uint8))
        case "pickled":
            path.write_bytes(pickle.dumps(Trap()))
    assert torch.equal(opened(files).fetch(torch.arange(9)), expected)
    assert not (tmp_path / "sprung").exists()


def test_unreadable_picture_leaves_no_file(files, tmp_path):
    Path(files.paths[8]).write_bytes(b"no")
    with pytest.raises(ValueError, match=r"8\.png"):
        open_cached({"train": files})
    assert not [path for path in (tmp_path / "the cache/pictures").iterdir() if path.suffix != ".lock"]


def test_too_little_room_is_said(files, monkeypatch, caplog):
    monkeypatch.setattr(cache, "MARGIN", 2**62)
    assert open_cached({"train": files}) == {"train": files}
    assert "pictures are decoded anew in every epoch" in caplog.text and "TORCHCAPS_CACHE" in caplog.text


def test_a_disk_that_fills_while_pictures_are_decoded(files, tmp_path, monkeypatch, caplog):
    """A file that is mapped before it is written would end the process."""

    class Full(io.FileIO):
        def write(self, data):
            if self.tell() + memoryview(data).nbytes > 400:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    monkeypatch.setattr(cache, "open", Full, raising=False)
    splits = {"train": files, "test": files.subset(torch.arange(2))}
    assert open_cached(splits) == splits and os.strerror(errno.ENOSPC) in caplog.text
    assert not list((tmp_path / "the cache/pictures").glob("*.part"))
    monkeypatch.undo()
    monkeypatch.setenv("TORCHCAPS_CACHE", str(tmp_path / "the cache"))
    assert torch.equal(opened(files).fetch(torch.arange(9)), files.load().pixels)


def test_room_is_looked_at_by_the_one_who_writes(files, monkeypatch):
    """A process that came second would count what the first has taken, and decode anew what lies there."""
    wait, room = cache.wait_for, shutil.disk_usage

    @contextlib.contextmanager
    def wait_for(path: Path):
        monkeypatch.setattr(cache, "wait_for", wait)
        opened(files)  # by the process that is waited for
        monkeypatch.setattr(cache, "MARGIN", 2**62)
        with wait(path):
            yield

    monkeypatch.setattr(cache, "wait_for", wait_for)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: order.append("room") or room(path))
    order: list[str] = []
    assert opened(files).shape == (3, 4, 5) and order == ["room"]


def test_mean_and_deviation_do_not_depend_on_the_room_of_a_disk(files, monkeypatch):
    monkeypatch.setattr(load, "SAMPLE", 4)
    mapped, resident = moments(opened(files)), moments(files.load())
    assert all(map(torch.equal, moments(files), mapped)) and not torch.equal(mapped[0], resident[0])
    pixels = files.load().pixels[torch.arange(4) * 9 // 4].double() / 255
    torch.testing.assert_close(mapped[0], pixels.mean((0, 2, 3)).float())


def test_floats_in_memory_are_all_counted(monkeypatch):
    monkeypatch.setattr(load, "SAMPLE", 4)
    images = torch.randn(9, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    mean, std = moments(Floats(images, torch.arange(9) % 2, ("ant", "bee")))
    torch.testing.assert_close(mean, images.mean((0, 2, 3)))
    torch.testing.assert_close(std, images.std((0, 2, 3), correction=0))


@pytest.mark.slow
def test_two_processes_at_once(files, tmp_path):
    """Both see the same whole pixels, and one of them decodes."""
    program = (
        "import sys, torch\n"
        "from torchcaps.data.cache import open_cached\n"
        "from torchcaps.data.files import Form, ImageFiles\n"
        "files = ImageFiles(tuple(sys.argv[1:]), torch.arange(9) % 2, ('ant', 'bee'), Form((3, 4, 5)))\n"
        "print(open_cached({'train': files})['train'].fetch(torch.arange(9)).sum().item())\n"
    )
    command = [sys.executable, "-c", program, *files.paths]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate() for process in processes]
    assert {out.strip() for out, _ in answers} == {str(files.load().pixels.sum().item())}
    assert sum("decoding 9 pictures once" in error for _, error in answers) == 1
    assert len(list((tmp_path / "the cache/pictures").glob("*.npy"))) == 1
