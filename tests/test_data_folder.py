"""Folders of image files, in memory and streamed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchcaps.config import AugmentConfig, DataConfig
from torchcaps.data import ImageFiles, Images, folder, load_data
from torchcaps.data.images import resize


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


def test_streamed_equals_resident(tmp_path, monkeypatch):
    fill(tmp_path, per_class=7)
    options = {
        "validation": 0.3,
        "image_size": 4,
        "standardise": "dataset",
        "augment": AugmentConfig(crop=1, flip=True),
    }
    resident = load(tmp_path, **options)
    monkeypatch.setattr(folder, "RESIDENT_LIMIT", 0)
    monkeypatch.setattr(folder, "workers", lambda images: 2)
    streamed = load(tmp_path, **options)
    assert isinstance(streamed.train, ImageFiles)
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


def test_workers_decode_in_order(tmp_path):
    fill(tmp_path)
    paths = tuple(str(path) for path in sorted(tmp_path.glob("train/*/*.png")))
    files = ImageFiles(paths, torch.tensor([0] * 5 + [1] * 5), ("ant", "bee"), (3, 6, 5), workers=2)
    batches = torch.tensor([3, 1, 9, 0, 0, 7]).split(2)
    for decoded, batch in zip(files.stream(batches), batches, strict=True):
        assert torch.equal(decoded, files.fetch(batch))
    assert torch.equal(everything(files.load()), everything(files))


@pytest.mark.parametrize("name", ["val", "validation"])
def test_given_validation_split(tmp_path, name):
    fill(tmp_path)
    fill(tmp_path, splits=(name,), per_class=2)
    data = load(tmp_path, validation=0.5)
    assert (len(data.train), len(data.validation), len(data.test)) == (10, 4, 10)


def test_class_folders_alone_give_a_fixed_test_split(tmp_path):
    fill(tmp_path, splits=(".",), per_class=10)
    data, again = load(tmp_path), load(tmp_path, split_seed=5, validation=0.25)
    assert len(data.train) == 16 and data.test.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(everything(data.test), everything(again.test))


def test_grey_only_where_all_classes_are(tmp_path):
    fill(tmp_path / "grey", shape=(4, 4))
    assert load(tmp_path / "grey").channels == 1
    fill(tmp_path / "mixed", shape=(4, 4))
    save(tmp_path / "mixed/train/bee/0.png", np.zeros((4, 4, 3), np.uint8))
    assert load(tmp_path / "mixed").channels == 3


def test_sizes_that_differ_need_an_image_size(tmp_path):
    fill(tmp_path)
    other = save(tmp_path / "test/bee/odd.png", np.random.default_rng(1).integers(0, 256, (9, 3, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"odd\.png is 3x9 pixels.*5x6.*--data\.image-size"):
        load(tmp_path)
    resized = everything(load(tmp_path, image_size=8).test)[-1]
    assert torch.equal(resized, resize(torch.from_numpy(other).permute(2, 0, 1)[None], (8, 8))[0])


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


def test_deep_images_are_refused(tmp_path):
    fill(tmp_path, shape=(4, 4))
    save(tmp_path / "train/ant/0.png", np.full((4, 4), 40_000, np.uint16))
    with pytest.raises(ValueError, match=r"ant.0\.png: mode I;16, but only images of 8 bits"):
        load(tmp_path)


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
