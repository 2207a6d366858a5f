"""Tables that name pictures: one label or several, splits, headers, and lines that are wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchcaps.config import DataConfig
from torchcaps.data import Data, load_data


def load(folder: Path, lines: list[str], encoding: str = "utf-8", **options) -> Data:
    """Of pictures 0.png .. 19.png, each of its own grey."""
    for number in range(20):
        Image.fromarray(np.full((4, 4), number, np.uint8)).save(folder / f"{number}.png")
    path = folder / "my pictures.csv"
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return load_data(DataConfig(f"list:{path}", **({"validation": 0.0} | options)))


def named(data: Data, split: str) -> dict[int, set[str]]:
    """The classes of each picture, by its grey."""
    source = getattr(data, split)
    greys = source.fetch(torch.arange(len(source)))[:, 0, 0, 0].tolist()
    targets = source.targets(torch.arange(len(source)))
    sets = targets if targets.ndim == 2 else torch.nn.functional.one_hot(targets, data.num_classes)
    names = [{data.train.classes[label] for label in row.nonzero().flatten()} for row in sets]
    return dict(zip(greys, names, strict=True))


def test_one_label_each(tmp_path):
    data = load(tmp_path, [f"{n}.png,{'dog' if n % 2 else 'a cat'}" for n in range(20)])
    assert data.train.classes == ("a cat", "dog") and data.shown == 1
    assert (len(data.train), len(data.test)) == (16, 4)
    assert all(
        names == {"dog" if n % 2 else "a cat"} for n, names in (named(data, "train") | named(data, "test")).items()
    )


def test_several_labels(tmp_path):
    lines = ["0.png,cat,dog", "1.png,dog", "2.png,bee,cat,dog", *(f"{n}.png,bee" for n in range(3, 20))]
    data = load(tmp_path, lines, validation=0.25)
    assert data.train.classes == ("bee", "cat", "dog") and data.shown is None
    shown = named(data, "train") | named(data, "validation") | named(data, "test")
    assert len(shown) == 20 and shown[0] == {"cat", "dog"} and shown[1] == {"dog"} and shown[5] == {"bee"}
    images, labels = next(data.training(DataConfig(), 4, seed=0).epoch(0))
    assert images.shape == (4, 1, 4, 4) and labels.shape == (4, 3) and labels.dtype == torch.uint8


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_header_with_splits_as_spreadsheets_write_it(tmp_path, delimiter):
    splits = ["train"] * 10 + ["valid"] * 4 + ["Test"] * 6
    rows = [("Path", "Split", "Label"), *((f"{n}.png", splits[n], f'"{n % 2 + 9}"') for n in range(20))]
    data = load(tmp_path, [delimiter.join(row) for row in rows], encoding="utf-8-sig")
    assert data.train.classes == ("9", "10"), "whole numbers are in the order of their values"
    assert sorted(named(data, "validation")) == [10, 11, 12, 13] and sorted(named(data, "test")) == list(range(14, 20))


def test_columns_of_zeros_and_ones(tmp_path, caplog):
    lines = ["file,cat,dog", "0.png,1,1", *(f"{n}.png,{n % 2},{1 - n % 2}" for n in range(1, 20))]
    data = load(tmp_path, lines)
    shown = named(data, "train") | named(data, "test")
    assert shown[0] == {"cat", "dog"} and shown[1] == {"cat"} and shown[2] == {"dog"}
    assert "the columns cat, dog of" in caplog.text


def test_columns_that_are_all_labels_are_said(tmp_path, caplog):
    data = load(tmp_path, ["path,pet,place", *(f"{n}.png,{'dog' if n % 2 else 'cat'},home" for n in range(20))])
    assert (named(data, "train") | named(data, "test"))[1] == {"dog", "home"}
    assert "the columns pet, place of" in caplog.text


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["0.png,cat", "nowhere.png,dog"], r"line 2: there is no file .*nowhere\.png"),
        (["0.png,cat", "1.png"], "line 2 has no label"),
        (["0.png,cat", ",dog"], "line 2 has no path"),
        (["0.png,cat", "1.png,dog", "0.png,dog"], r"line 3: 0\.png is named in line 1 too"),
        (["0.png,cat,cat"], "line 1 has the same label twice"),
        (["path,split,label", "0.png,maybe,cat"], "line 2: the split is 'maybe'; it must be train, validation, test"),
        (["path,split,label", "0.png,train,cat"], "names no picture of the split 'test'"),
        (["path,split,label", "0.png,train,cat", "1.png,test,dog"], "line 3: no training picture has the label 'dog'"),
        (["path,label", "0.png,cat,dog"], "line 2 has 3 cells, but the header 2"),
        (["path,label"], "names no pictures"),
        ([f"{n}.png,cat,{'train' if n else 'Test'}" for n in range(9)], "a column holds .*such as Test: call it split"),
        (["0.png,cat,dog,train", "1.png,cat,test"], "the last column holds nothing but names of splits, such as train"),
        (["path,species,set", "0.png,cat,train", "1.png,dog,val"], "set holds nothing but names of splits"),
        (["path,split,label", "0.png,train,cat", "./0.png,test,cat"], r"line 3: \./0\.png is named in line 2 too"),
        (["0.png,cat", "./sub/../0.png,cat"], "is named in line 1 too"),
        (["0.png,cat", "~nobody/1.png,cat"], r"line 2: there is no file .*~nobody"),
        (["path,age,label", "0.png,20,cat"], "names age, label beside the path, and label alone would be the label"),
        (["label,path", "cat,0.png"], "names the column path behind others; it must be the first"),
        ([], "names no pictures"),
    ],
)
def test_lines_that_are_wrong(tmp_path, lines, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(tmp_path, lines)


def test_lines_of_several_labels_are_said_without_a_header_too(tmp_path, caplog):
    load(tmp_path, ["0.png,cat,dog", *(f"{n}.png,{'dog' if n % 2 else 'cat'}" for n in range(1, 20))])
    assert "1 of 20 lines of" in caplog.text and "several labels of one picture; line 1: cat, dog" in caplog.text


def test_classes_may_be_named_like_splits_where_the_column_is_named(tmp_path):
    data = load(tmp_path, ["path,label", *(f"{n}.png,{'train' if n % 2 else 'test'}" for n in range(20))])
    assert data.train.classes == ("test", "train")


def test_a_name_that_begins_with_a_tilde_is_a_name(tmp_path):
    Image.fromarray(np.full((4, 4), 99, np.uint8)).save(tmp_path / "~1.png")
    data = load(tmp_path, ["~1.png,cat", *(f"{n}.png,{'dog' if n % 2 else 'cat'}" for n in range(20))])
    assert 99 in named(data, "train") | named(data, "test")


def test_the_order_of_lines_is_that_of_the_run(tmp_path):
    """The same pictures in other batches: a resumed run had gone on with them."""
    lines = [f"{n}.png,{'train' if n < 14 else 'test'},{'cat' if n % 2 else 'dog'}" for n in range(20)]
    one, again, turned = (
        load(tmp_path, ["path,split,label", *rows]).digest("train") for rows in (lines, lines, lines[::-1])
    )
    assert one == again == turned and one.goes_on(again)
    assert not turned.goes_on(one) and turned.goes_on(replace(one, order="")), "an older run does not say its order"


def test_two_links_to_one_picture_are_one_picture(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"link\.png is named in line 2 too"):
        load(tmp_path, ["path,split,label", "0.png,train,cat", "link.png,test,cat"])


def test_files_that_are_no_tables(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe0\x00")
    with pytest.raises(ValueError, match=r"a\.csv is no CSV file in UTF-8"):
        load_data(DataConfig(f"list:{tmp_path / 'a.csv'}"))
    with pytest.raises(FileNotFoundError, match="as list:FILE"):
        load_data(DataConfig(f"list:{tmp_path / 'b.csv'}"))
