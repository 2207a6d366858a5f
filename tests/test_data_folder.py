"""Folders of image files, in memory and streamed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchcaps.config import AugmentConfig, ComposeConfig, DataConfig
from torchcaps.data import ImageFiles, Images, folder, load_data
from torchcaps.data import files as reading
from torchcaps.data import load as loading
from torchcaps.data.cache import Mapped
from torchcaps.data.pictures import fit_picture, suffixes


def save(path: Path, pixels: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def fill(root: Path, shape=(6, 5, 3), classes=("ant", "bee"), per_class=5, splits=("train", "test")) -> dict:
    """Random images, root/split/class/n.png; returns them by (split, class, n)."""
    rng = np.random.default_rng(0)
    return {
        (split, name, n): save(root / split / name / f"{n}.png", rng.integers(0, 256, shape, dtype=np.uint8))
        for split in splits
        for name in classes
        for n in range(per_class)
    }


def load(root: Path, **options):
    return load_data(DataConfig(name=f"folder:{root}", **{"validation": 0.0, **options}))


def everything(source) -> torch.Tensor:
    return source.fetch(torch.arange(len(source)))


def test_pixels_labels_and_classes(tmp_path):
    written = fill(tmp_path)
    data = load(tmp_path)
    assert isinstance(data.train, Images)
    assert data.train.classes == ("ant", "bee") and data.train.labels.tolist() == [0] * 5 + [1] * 5
    expected = np.stack([written["test", name, n] for name in ("ant", "bee") for n in range(5)]).transpose(0, 3, 1, 2)
    assert np.array_equal(everything(data.test).numpy(), expected)


@pytest.mark.parametrize("kind", [Mapped, ImageFiles])
def test_what_is_not_in_memory_equals_what_is(tmp_path, monkeypatch, kind):
    """Mapped, or where there is no place for the file, decoded by worker processes."""
    fill(tmp_path / "pictures", per_class=7)
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("no folder")
    options = {
        "validation": 0.3,
        "image_size": 4,
        "standardise": "dataset",
        "augment": AugmentConfig(crop=1, flip=True),
    }
    resident = load(tmp_path / "pictures", **options)
    monkeypatch.setattr(folder, "RESIDENT_LIMIT", 0)
    monkeypatch.setattr(folder, "workers", lambda images: 2)
    monkeypatch.setenv("TORCHCAPS_CACHE", str(tmp_path / "cache" if kind is Mapped else "file"))
    streamed = load(tmp_path / "pictures", **options)
    assert isinstance(streamed.train, kind)
    assert torch.equal(streamed.mean, resident.mean) and torch.equal(streamed.std, resident.std)

    config = DataConfig(**options)
    state = torch.get_rng_state()
    for start in (0, 1):
        ours, theirs = (list(data.training(config, 4, seed=3).epoch(2, start)) for data in (streamed, resident))
        assert len(ours) == 2 - start
        for (images, labels), (images_, labels_) in zip(ours, theirs, strict=True):
            assert torch.equal(images, images_) and torch.equal(labels, labels_)
    for split in ("validation", "test"):
        ours, theirs = (list(data.evaluation(split, 4).epoch(0)) for data in (streamed, resident))
        for (images, labels), (images_, labels_) in zip(ours, theirs, strict=True):
            assert torch.equal(images, images_) and torch.equal(labels, labels_)
    assert torch.equal(torch.get_rng_state(), state), "streaming drew from the global generator"


@pytest.mark.parametrize("forks", [True, False], ids=["processes", "threads"])
def test_workers_decode_in_order(tmp_path, monkeypatch, forks):
    """In threads where processes are not forked, as on Windows and macOS, and import the user's script once more."""
    monkeypatch.setattr(reading, "forks", lambda: forks)
    if not forks:
        monkeypatch.setattr(reading, "DataLoader", lambda *others, **more: pytest.fail("it starts processes"))
    fill(tmp_path)
    paths = tuple(str(path) for path in sorted(tmp_path.glob("train/*/*.png")))
    files = ImageFiles(paths, torch.tensor([0] * 5 + [1] * 5), ("ant", "bee"), folder.Form((3, 6, 5)), workers=2)
    batches = torch.tensor([3, 1, 9, 0, 0, 7]).split(2)
    for decoded, batch in zip(files.stream(batches), batches, strict=True):
        assert torch.equal(decoded, files.fetch(batch))
    assert torch.equal(everything(files.load()), everything(files))
    stream = files.stream(torch.arange(10).repeat(50).split(1))
    next(stream)
    stream.close()
    Path(paths[4]).write_bytes(b"no")
    with pytest.raises(ValueError, match=re.escape(paths[4])):
        list(files.stream((*batches[:2], torch.tensor([4]))))


def test_a_process_that_is_started_forks_or_does_not(monkeypatch):
    monkeypatch.setattr(reading, "get_start_method", lambda allow_none: None)
    for methods in (["fork", "spawn"], ["spawn", "fork"], ["forkserver", "spawn"], ["spawn"]):
        monkeypatch.setattr(reading, "get_all_start_methods", lambda methods=methods: methods)
        assert reading.forks() == (methods[0] == "fork")
    monkeypatch.setattr(reading, "get_start_method", lambda allow_none: "fork")
    assert reading.forks()


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "val", "test"),
        ("train", "valid", "test"),
        ("Training", "dev", "Testing"),
        ("TRAIN", "validation", "test"),
    ],
)
def test_splits_by_their_usual_names(tmp_path, train, validation, test):
    for name, images in ((train, 5), (validation, 2), (test, 3)):
        fill(tmp_path, splits=(name,), per_class=images)
    data = load(tmp_path, validation=0.5)
    assert (len(data.train), len(data.validation), len(data.test)) == (10, 4, 6)


def test_folders_that_are_neither_splits_nor_classes(tmp_path):
    fill(tmp_path / "beside", splits=("train", "test", "extra"))
    with pytest.raises(ValueError, match=r"extra lies beside the splits of .*named train, training, validation"):
        load(tmp_path / "beside")
    fill(tmp_path / "twice", splits=("train", "test", "val", "valid"))
    with pytest.raises(ValueError, match=r"val and .*valid are both the validation split"):
        load(tmp_path / "twice")
    fill(tmp_path / "above/unpacked")
    with pytest.raises(
        ValueError, match=r"unpacked holds the splits test, train, so it is no class: give folder:.*unp"
    ):
        load(tmp_path / "above")
    fill(tmp_path / "within", splits=("ant/train", "ant/test", "bee/train", "bee/test"), classes=(".",))
    with pytest.raises(ValueError, match=r"ant holds the splits test, train, so it is no class: move them up, to"):
        load(tmp_path / "within")
    fill(tmp_path / "single", splits=("images",))
    with pytest.raises(ValueError, match=r"has one folder, images, which holds ant, bee: give folder:.*images"):
        load(tmp_path / "single")


def test_splits_under_other_names_are_no_classes(tmp_path):
    """training_set and test_set had become the classes, in silence."""
    fill(tmp_path / "sets", splits=("training_set", "test_set"))
    said = r"test_set, training_set of .*sets hold no pictures of their own, but each of them folders ant, bee: if ant,"
    with pytest.raises(ValueError, match=said + r" bee are the classes, name test_set, training_set as splits are"):
        load(tmp_path / "sets")
    fill(tmp_path / "val", splits=("train_images", "val"))
    with pytest.raises(ValueError, match=r"val is named like the validation split, and no folder .*name that one tr"):
        load(tmp_path / "val")
    fill(tmp_path / "part", splits=("train/one", "train/two", "test/one", "test/two"))
    with pytest.raises(ValueError, match=r"one, two of .*train hold no pictures .* move them up, into .*train; if one"):
        load(tmp_path / "part")
    fill(tmp_path / "views", splits=("train/ant", "train/bee", "test/ant"), classes=("images",))
    assert load(tmp_path / "views").train.classes == ("ant", "bee"), "one folder of the same name is no class"
    save(tmp_path / "sets/test_set/0.png", np.zeros((6, 5, 3), np.uint8))
    assert load(tmp_path / "sets").train.classes == ("test_set", "training_set"), "pictures of its own make it a class"


def test_what_lies_below_class_folders_is_read(tmp_path, caplog):
    fill(tmp_path, splits=("train", "test"), classes=("ant", "bee", "bee/2021", "bee/2021/may"), per_class=3)
    data = load(tmp_path)
    assert data.train.classes == ("ant", "bee") and data.train.labels.tolist() == [0] * 3 + [1] * 9
    assert "a class of" in caplog.text and "4 folder(s)" in caplog.text and "train/bee/2021/may" in caplog.text


def test_links_are_followed_but_not_for_ever(tmp_path):
    fill(tmp_path / "real", per_class=3)
    (tmp_path / "linked").mkdir()
    for split in ("train", "test"):
        (tmp_path / "linked" / split).symlink_to(tmp_path / "real" / split)
    (tmp_path / "real/train/ant/up").symlink_to(tmp_path / "real/train/ant")
    assert len(load(tmp_path / "linked").train) == 6


def test_all_that_is_left_out_is_counted_and_named_once(tmp_path, caplog):
    fill(tmp_path)
    for name in (
        "readme.txt",
        "train/labels.csv",
        "train/ant/notes.doc",
        "train/bee/deep/x.pdf",
        ".hidden",
        "test/ant/.h",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    load(tmp_path)
    load(tmp_path)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"torchcaps: left out 4 file(s) of {tmp_path} that are no pictures in a class")
    for name in ("readme.txt", "labels.csv", "notes.doc", "x.pdf"):
        assert name in caplog.messages[0]


def test_all_files_that_pillow_decodes_are_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    names = ("a.PNG", "b.jfif", "c.gif", "d.tga", "e.jp2", "f.ico", "g.pcx", "h.avif", "i.dib")
    for split in ("train", "test"):
        for kind in ("ant", "bee"):
            for name in names:
                if Path(name).suffix.lower() in suffixes():
                    (tmp_path / split / kind).mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).resize((16, 16)).save(tmp_path / split / kind / name)
    assert len(load(tmp_path, image_size=8).train) == 2 * sum(Path(name).suffix.lower() in suffixes() for name in names)


def test_class_folders_alone_give_a_fixed_test_split(tmp_path):
    fill(tmp_path, splits=(".",), per_class=10)
    data, again = load(tmp_path), load(tmp_path, split_seed=5, validation=0.25)
    assert len(data.train) == 16 and data.test.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(everything(data.test), everything(again.test))


def test_colour_where_any_training_picture_has_it(tmp_path, caplog):
    fill(tmp_path / "grey", shape=(4, 4))
    assert load(tmp_path / "grey").channels == 1 and load(tmp_path / "grey", colour="rgb").channels == 3
    fill(tmp_path / "mixed", shape=(4, 4))
    save(tmp_path / "mixed/train/bee/3.png", np.full((4, 4, 3), [200, 0, 0], np.uint8))
    mixed = load(tmp_path / "mixed")
    assert mixed.channels == 3 and mixed.train.fetch(torch.tensor([8]))[0, :, 0, 0].tolist() == [200, 0, 0]
    assert "1 training pictures have colour and 9 are grey: all are read in colour" in caplog.text
    caplog.clear()
    assert load(tmp_path / "mixed", colour="grey").channels == 1 and not caplog.messages
    save(tmp_path / "grey/test/bee/3.png", np.full((4, 4, 3), [200, 0, 0], np.uint8))
    assert load(tmp_path / "grey").channels == 1
    assert "1 of 20 pictures have colour, and become grey as those of training are" in caplog.text


def test_ground_is_seen_through_what_is_transparent(tmp_path, caplog):
    """Drawings in transparency alone, black on nothing: on black nothing is left of them."""
    for index, split in enumerate(("train", "test")):
        for kind in ("ant", "bee"):
            for number in range(3):
                drawn = np.zeros((4, 4, 4), np.uint8)
                drawn[number, index, 3] = 255
                save(tmp_path / split / kind / f"{number}.png", drawn)
    assert everything(load(tmp_path).train)[0].sum((1, 2)).tolist() == [15 * 255] * 3
    assert load(tmp_path, ground="red", colour="grey").train.fetch(torch.tensor([0])).max() == 76
    assert "12 of 12 pictures have transparency, and are laid on white (--data.ground); such as" in caplog.text
    with pytest.raises(ValueError, match=r"all 6 training images are the same.*--data\.ground of another colour"):
        load(tmp_path, ground="black")


def test_proportions_that_change_are_said(tmp_path, caplog):
    fill(tmp_path, shape=(8, 4))
    written = np.array(Image.open(tmp_path / "test/ant/0.png"))
    for fit, expected in (("crop", written[2:6]), ("pad", None), ("stretch", None)):
        caplog.clear()
        found = load(tmp_path, image_size=4, fit=fit, ground="#070707").test.fetch(torch.tensor([0]))[0, 0].numpy()
        assert "20 of 20 pictures have other proportions than 4x4, and are " in caplog.messages[0]
        if expected is not None:
            assert np.array_equal(found, expected)
        assert ((found[:, [0, 3]] == 7).all()) == (fit == "pad")


def test_what_is_changed_in_reading_is_said(tmp_path, caplog):
    fill(tmp_path, shape=(4, 4))
    folder = tmp_path / "train/ant"
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(folder / "deep.png")
    Image.new("CMYK", (4, 4), (9, 9, 9, 9)).save(folder / "print.tif")
    Image.new("L", (4, 4)).save(folder / "pages.tif", save_all=True, append_images=[Image.new("L", (4, 4), 3)])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (4, 4)).save(folder / "turned.jpg", exif=exif)
    load(tmp_path)
    for said in ("16 bits a channel.*deep", "several pages.*pages", "EXIF orientation says; .*turned", "CMYK.*print"):
        assert [len(re.findall(f"1 of 24 pictures .*{said}", text)) for text in caplog.messages].count(1) == 1, said


def test_sizes_that_differ_need_an_image_size(tmp_path):
    fill(tmp_path)
    other = save(tmp_path / "test/bee/odd.png", np.random.default_rng(1).integers(0, 256, (9, 3, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"odd\.png is 3x9 pixels.*5x6.*--data\.image-size"):
        load(tmp_path)
    resized = everything(load(tmp_path, image_size=8).test)[-1]
    assert np.array_equal(resized.numpy(), fit_picture(other.transpose(2, 0, 1), (8, 8)))


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_named(tmp_path, monkeypatch, workers):
    fill(tmp_path)
    broken = tmp_path / "train/bee/2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    monkeypatch.setattr(folder, "workers", lambda images: workers)
    with pytest.raises(ValueError, match=r"^cannot read the image .*bee.2\.png"):
        load(tmp_path, image_size=4)
    broken.write_bytes(b"text")
    with pytest.raises(ValueError, match=r"^cannot read the image .*bee.2\.png"):
        load(tmp_path)


def test_a_class_of_which_nothing_can_be_read_is_named(tmp_path):
    """It had stayed a class that nothing is trained on."""
    fill(tmp_path)
    for number in range(5):
        (tmp_path / f"test/bee/{number}.png").write_bytes(b"text")
    assert len(load(tmp_path, skip_unreadable=True).test) == 5
    for number in range(5):
        (tmp_path / f"train/bee/{number}.png").write_bytes(b"text")
    with pytest.raises(ValueError, match="none of the training pictures of the class 'bee' can be read"):
        load(tmp_path, skip_unreadable=True)


def test_workers_are_as_many_as_the_process_may_use_cores(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {1, 5, 7}, raising=False)
    assert folder.workers(10_000) == 3 and folder.workers(100) == 0
    monkeypatch.delattr("os.sched_getaffinity")
    assert folder.workers(10_000) == 8


def test_faulty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load(tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no images"):
        load(tmp_path)
    fill(tmp_path, splits=("train",))
    with pytest.raises(ValueError, match="has no folder 'test' beside train"):
        load(tmp_path)
    fill(tmp_path, splits=("test",), classes=("ant", "cat"))
    with pytest.raises(ValueError, match=r"class 'cat' of .*test has no folder among the training images"):
        load(tmp_path)
    (tmp_path / "train/cat").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*cat holds no images"):
        load(tmp_path)


def test_no_class_is_drawn_out_of_training(tmp_path):
    """Of a class with one picture that one had become a test picture, so that nobody learnt it."""
    fill(tmp_path, splits=(".",), classes=tuple("bcdef"), per_class=1)
    fill(tmp_path, splits=(".",), classes=("a",), per_class=10)
    data = load(tmp_path, validation=0.25)
    assert data.train.labels.unique().tolist() == list(range(6))
    assert (len(data.train), len(data.validation), len(data.test)) == (9, 3, 3)
    assert data.test.labels.tolist() == [0, 0, 0]


def test_changes_of_colours_that_images_do_not_have(tmp_path, caplog):
    fill(tmp_path / "grey", shape=(4, 4))
    np.savez(tmp_path / "two.npz", x_train=np.random.default_rng(0).integers(0, 255, (8, 5, 5, 2), dtype=np.uint8),
             y_train=np.arange(8) % 2, x_test=np.zeros((2, 5, 5, 2), np.uint8), y_test=np.arange(2))  # fmt: skip
    config = DataConfig(f"npz:{tmp_path / 'two.npz'}", validation=0.0, augment=AugmentConfig(contrast=0.2))
    with pytest.raises(ValueError, match=r"data\.augment\.contrast is 0\.2: .* these have 2 channels"):
        load_data(config).training(config, 2, 0)
    data = load(tmp_path / "grey")
    data.training(DataConfig(augment=AugmentConfig(hue=0.1, contrast=0.1)), 2, 0)
    assert "data.augment.hue is 0.1: it is of RGB images, and changes nothing of 1 channel(s)" in caplog.text
    load_data(DataConfig("digits", copies=3, limit=20))
    assert "data.copies is 3, which digits does not read: it changes nothing" in caplog.text


def test_what_is_idle_is_asked_of_all_sets_that_are_read(tmp_path, caplog, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 1, 28, 28), dtype=np.uint8)
    labels = np.arange(60) % 10
    np.savez(tmp_path / "own.npz", x_train=pixels, y_train=labels, x_test=pixels[:20], y_test=labels[:20])
    own, few = f"npz:{tmp_path / 'own.npz'}", ComposeConfig(base="digits", epoch=10, held=5, shift=0, per_image=1)
    load_data(DataConfig("multimnist", compose=replace(few, base=own), order="nchw"))
    load_data(DataConfig("expanded-mnist", test=own, compose=few, order="nchw"))
    load_data(DataConfig(own, test="expanded-mnist", compose=few, order="nchw"))
    monkeypatch.setattr(
        loading, "read_test", lambda name, config: load_data(replace(config, test=None, copies=32)).test
    )
    load_data(DataConfig("expanded-mnist", test="affnist", compose=few, copies=1))
    assert "changes nothing" not in caplog.text
    load_data(DataConfig("digits", test="digits", limit=20, order="nchw"))
    load_data(DataConfig("expanded-mnist", compose=few, order="nhwc"))
    assert "data.order is nchw, which digits does not read: it changes nothing" in caplog.text
    assert "data.order is nhwc, which expanded-mnist and digits do not read: it changes nothing" in caplog.text
