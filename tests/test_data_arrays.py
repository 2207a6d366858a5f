"""Arrays of the user's own in .npz files: orders of the axes, ranges, labels, and what else lies there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from torchcaps.config import DataConfig
from torchcaps.data import Data, load_data

VALUES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


def load(path: Path, images: np.ndarray = VALUES, labels: np.ndarray | None = None, order="auto", **more) -> Data:
    """Twelve images, the same for training and test."""
    labels = np.arange(12) % 3 if labels is None else labels
    path = path / f"{len(list(path.iterdir()))}.npz"  # each has a name of its own: of one, things are said once
    np.savez(path, **({"x_train": images, "y_train": labels, "x_test": images, "y_test": labels} | more))
    return load_data(DataConfig(f"npz:{path}", validation=0.0, order=order))


def pixels(data: Data) -> np.ndarray:
    return data.train.fetch(torch.arange(len(data.train))).numpy()


FIRST = VALUES.transpose(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("images", "readings"),
    [
        (FIRST, r"8x3 pixels of 8 channels \(nhwc\), or 8x8 pixels of 3 channels \(nchw\)"),
        (FIRST[:, :1], r"8x1 pixels of 8 channels \(nhwc\), or 8x8 pixels of 1 channels \(nchw\)"),
        (np.tile(FIRST, (1, 4, 1, 1)), r"8x12 pixels of 8 channels \(nhwc\), or 8x8 pixels of 12 channels \(nchw\)"),
        (FIRST[..., :3], r"8x3 pixels of 3 channels \(nhwc\), or 3x8 pixels of 3 channels \(nchw\)"),
    ],
)
def test_shapes_that_can_be_read_in_two_ways(tmp_path, images, readings):
    with pytest.raises(ValueError, match=rf"x_train .* is {readings}: say which with --data\.order"):
        load(tmp_path, images)
    assert np.array_equal(pixels(load(tmp_path, images, order="nchw")), images)
    assert np.array_equal(pixels(load(tmp_path, images, order="nhwc")), images.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("images", [VALUES, VALUES[..., :1], VALUES[:, :4, :4], VALUES[:, :5]])
def test_shapes_that_can_be_read_in_one_way(tmp_path, images):
    assert np.array_equal(pixels(load(tmp_path, images)), images.transpose(0, 3, 1, 2))
    assert np.array_equal(pixels(load(tmp_path, images[..., 0])), images[..., 0][:, None])


@pytest.mark.parametrize(
    ("images", "expected", "said"),
    [
        ((VALUES / 255).astype(np.float32), VALUES, r"float32, in \[0, 1\]: multiplied by 255"),
        (VALUES.astype(np.float64), VALUES, r"float64, in \[0, 255\]: rounded; 255 is white"),
        (VALUES.astype(np.int64), VALUES, r"int64, in \[0, 255\]: taken for 8 bits"),
        (VALUES.astype(np.uint16) * 256 + 255, VALUES, "16 bits, of which the upper eight are kept"),
        (VALUES > 128, (VALUES > 128) * np.uint8(255), "bool: False is black"),
        (VALUES % 2, VALUES % 2, "no pixel of .* is brighter than 1 of 255"),
    ],
    ids=["unit", "float", "integer", "sixteen", "bool", "zero-one"],
)
def test_other_numbers_are_taken_with_a_word(tmp_path, caplog, images, expected, said):
    data = load(tmp_path, images)
    assert np.array_equal(pixels(data), expected.transpose(0, 3, 1, 2))
    assert len(caplog.messages) == 1 and re.search(said, caplog.text)


@pytest.mark.parametrize("images", [VALUES / 127.5 - 1, VALUES * 2.0, VALUES.astype(np.int32) - 1])
def test_ranges_that_are_not_known_are_refused(tmp_path, images):
    with pytest.raises(ValueError, match="which values are black and white is not known"):
        load(tmp_path, images)


def test_range_is_that_of_all_splits(tmp_path):
    """A dark training split does not make its floats a share of white."""
    dark = (VALUES > 250).astype(np.float32)
    data = load(tmp_path, dark, x_test=VALUES.astype(np.float32))
    assert pixels(data).max() == 1


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (np.arange(12) % 3 + 1, ("1", "2", "3")),
        (np.array([2, 5, 10] * 4), ("2", "5", "10")),
        (np.array([-1, 1] * 6), ("-1", "1")),
        (np.array(["cat", "ant", "bee"] * 4), ("ant", "bee", "cat")),
        (np.array([b"cat", b"ant"] * 6)[:, None], ("ant", "cat")),
        (np.array([False, True] * 6), ("False", "True")),
    ],
)
def test_classes_are_the_values_that_labels_have(tmp_path, caplog, labels, names):
    data = load(tmp_path, labels=labels)
    assert data.train.classes == names
    assert [names[label] for label in data.train.labels] == [
        value.decode() if isinstance(value, bytes) else str(value) for value in labels.ravel()
    ]
    assert ("these are the names" in caplog.text) == (labels.dtype.kind == "i")


def test_validation_split_and_other_arrays(tmp_path, caplog):
    data = load(tmp_path, x_val=VALUES[:5], y_val=np.arange(5) % 3, names=np.array(["a"]), notes=np.zeros(2))
    assert len(data.validation) == 5 and len(data.train) == 12
    assert "left out 2 array(s) of" in caplog.text and "names, notes" in caplog.text


def test_labels_of_one_type_in_all_splits(tmp_path):
    """'0' and 0 look alike in a message."""
    numbers = np.arange(12) % 3
    said = "labels of all splits must be of one type, but those of train are numbers, those of test are "
    with pytest.raises(ValueError, match=said + "strings"):
        load(tmp_path, y_test=numbers.astype(str))
    with pytest.raises(ValueError, match=said + "bytes"):
        load(tmp_path, y_test=numbers.astype("S"))
    assert load(tmp_path, y_test=numbers.astype(np.uint8)).train.classes == ("0", "1", "2")


@pytest.mark.parametrize("labels", [np.array(["cat", "dog"] * 6), np.array(["0", "1"] * 6), np.arange(12) > 5])
def test_labels_of_a_named_set_are_whole_numbers(tmp_path, labels):
    np.savez(tmp_path / "cifar10.npz", x_train=VALUES, y_train=labels, x_test=VALUES, y_test=labels)
    with pytest.raises(ValueError, match=r"cifar10\.npz: train labels must be whole numbers, 0 \.\. 9, got "):
        load_data(DataConfig("cifar10", root=tmp_path))
