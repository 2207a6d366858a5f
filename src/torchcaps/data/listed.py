"""Pictures that a table names: `list:FILE`, a CSV file of a path and a label a line, or of a path and several labels.

Paths are relative to the folder of the file. A first line that begins with one of `HEADS` names the columns; a column
`split` then says train, validation or test (or another name of these, see `tree.SPLITS`), and without it a stratified
fifth, always the same, becomes the test split. Where a line has several labels, all labels are label sets, in
columns of any names but `LABELS`, of which one stands alone. Columns of 0 and 1 alone, under a header, say of the class
that the column is named after whether it is shown.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from torchcaps.config import DataConfig
from torchcaps.data.files import Form, ImageFiles
from torchcaps.data.folder import assemble, split_test
from torchcaps.data.images import Splits
from torchcaps.data.notes import say
from torchcaps.data.tree import SPLITS

LABELS = ("class", "label", "labels", "target")  # columns that are the label, or all of them
HEADS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "picture")
DELIMITERS = ("\t", ";", ",")  # of which the first that the first line has is taken; a comma where it has none


class Row(NamedTuple):
    """One picture."""

    line: int  # of the file, counted from 1
    path: str
    split: str  # a key of SPLITS, or "" where no column says it
    labels: tuple[str, ...]


def read_list(path: Path, config: DataConfig) -> Splits:
    """Return the splits of the pictures that the CSV file `path` names; see the head of this file, and
    `folder.assemble`.

    Classes are the labels of the training split, in the order of their names, or of their values where all are whole
    numbers.

    Raises:
        FileNotFoundError: when there is no such file, or a picture is not there.
        ValueError: when it is no table, names a picture twice, none for training or none for the test, or a class that
            training lacks, and as `folder.assemble` does.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give the path of a CSV file as list:FILE")
    rows = read_rows(path)
    splits = {row.split for row in rows}
    for split in ("train", "test") if splits != {""} else ():
        if split not in splits:
            raise ValueError(f"{path} names no picture of the split {split!r}")
    trained = [row for row in rows if row.split in ("", "train")]
    classes = order_names({label for row in trained for label in row.labels})
    several = any(len(row.labels) > 1 for row in rows)
    for row in rows:
        if absent := [label for label in row.labels if label not in classes]:
            raise ValueError(f"{path}, line {row.line}: no training picture has the label {absent[0]!r}")
        if not Path(row.path).is_file():
            raise FileNotFoundError(f"{path}, line {row.line}: there is no file {row.path}")
    listed = {}
    for split in sorted(splits, key=["", *SPLITS].index):
        chosen = [row for row in rows if row.split == split]
        paths = tuple(row.path for row in chosen)
        listed[split] = ImageFiles(paths, _encode(chosen, classes, several), classes, Form((0, 0, 0)))
    return assemble(listed if "train" in listed else split_test(listed[""]), config)


def read_rows(path: Path) -> list[Row]:
    """Return the pictures that the CSV file `path` names, in its order.

    Raises:
        ValueError: when it is no table in UTF-8, or a line lacks a path or a label, names a split that there is not, or
            a picture that another line names, under whatever path; when a column that is not called split holds
            nothing but splits.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = next((each for each in DELIMITERS if each in first), ",")
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
            table = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV file in UTF-8: {error}") from error
    header = [cell.lower() for cell in table[0][1]] if table and table[0][1][0].lower() in HEADS else []
    if table and not header and (misplaced := _misplaced(table[0][1])):
        raise ValueError(f"{path}: the header names the column {misplaced} behind others; it must be the first")
    names = table.pop(0)[1] if header else []
    columns = [name for name in names[1:] if name.lower() != "split"]
    if len(columns) > 1 and (label := next((name for name in columns if name.lower() in LABELS), None)):
        raise ValueError(
            f"{path}: the header names {', '.join(columns)} beside the path, and {label} alone would be the label: "
            "take the others out, or call columns that are all labels otherwise"
        )
    if not table:
        raise ValueError(f"{path} names no pictures: each line must be a path and its labels")
    _check_splits(path, names, [cells for _, cells in table])
    shown = _indicated(names, header, [cells for _, cells in table])
    if shown:
        say(f"the columns {', '.join(shown)} of {path} hold 0 and 1: read as which classes a picture shows")
    elif len(columns) > 1:
        say(f"the columns {', '.join(columns)} of {path} are read as labels of one picture")
    rows: dict[str, Row] = {}
    for line, cells in table:
        row = _read_row(path, line, cells, names, header, shown)
        place = os.path.normcase(os.path.realpath(row.path))
        if place in rows:
            raise ValueError(
                f"{path}, line {line}: {cells[0]} is named in line {rows[place].line} too; several labels of a picture "
                "belong in one line"
            )
        rows[place] = row
    if not header and (several := [row for row in rows.values() if len(row.labels) > 1]):
        first = f"line {several[0].line}: {', '.join(several[0].labels)}"
        say(f"{len(several):,} of {len(rows):,} lines of {path} are read as several labels of one picture; {first}")
    return list(rows.values())


def order_names(names: set[str]) -> tuple[str, ...]:
    """Return the names in the order of their values where all are whole numbers, else in that of the names."""
    numbers = all(re.fullmatch(r"-?\d+", name) for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name) if numbers else (0, name)))


def _misplaced(cells: Sequence[str]) -> str:
    """Return the column of paths that a header names behind others; empty where the cells are none."""
    lower = [cell.lower() for cell in cells]
    if lower[0] not in (*LABELS, "split"):
        return ""
    return next((cell for cell, name in zip(cells, lower, strict=True) if name in HEADS), "")


def _check_splits(path: Path, names: Sequence[str], table: Sequence[Sequence[str]]) -> None:
    """Raise ValueError where a column behind the path holds splits alone, and is not named split or as labels are."""
    known = {name for each in SPLITS.values() for name in each}
    columns = [("a column", list(column)) for column in zip(*table, strict=False)][1:]
    if names:
        named = zip(names[1:], columns, strict=False)
        columns = [(name, cells) for name, (_, cells) in named if name.lower() not in ("split", *LABELS)]
    elif min(map(len, table)) > 1:
        columns.append(("the last column", [cells[-1] for cells in table]))  # lines may have more labels or fewer
    for name, column in columns:
        if all(cell.lower() in known for cell in column):
            raise ValueError(
                f"{path}: {name} holds nothing but names of splits, such as {column[0]}: call it split in a first line "
                "of the names of all columns, such as path,label,split"
            )


def _indicated(names: Sequence[str], header: Sequence[str], table: Sequence[Sequence[str]]) -> list[str]:
    """Return the names of two or more columns behind the path that hold nothing but 0 and 1; none otherwise."""
    columns = [number for number, head in enumerate(header) if number and head != "split"]
    whole = all(len(cells) == len(header) for cells in table)
    if len(columns) < 2 or not whole or any(cells[number] not in ("0", "1") for cells in table for number in columns):
        return []
    return [names[number] for number in columns]


def _read_row(
    path: Path, line: int, cells: list[str], names: Sequence[str], header: Sequence[str], shown: Sequence[str]
) -> Row:
    split, labels = "", []
    if header and len(cells) > len(header):
        raise ValueError(f"{path}, line {line} has {len(cells)} cells, but the header {len(header)}")
    for number, cell in enumerate(cells):
        if header and header[number] == "split":
            known = next((split for split, others in SPLITS.items() if cell.lower() in others), None)
            if known is None:
                raise ValueError(f"{path}, line {line}: the split is {cell!r}; it must be {', '.join(SPLITS)}")
            split = known
        elif number and cell and (not shown or cell == "1"):
            labels.append(names[number] if shown else cell)
    if "split" in header and not split:
        raise ValueError(f"{path}, line {line} lacks its split")
    if not cells[0] or not labels:
        raise ValueError(f"{path}, line {line} has no {'label' if cells[0] else 'path'}: it must be a path and labels")
    if len(set(labels)) < len(labels):
        raise ValueError(f"{path}, line {line} has the same label twice: {', '.join(labels)}")
    return Row(line, str(path.parent / cells[0]), split, tuple(labels))


def _encode(rows: Sequence[Row], classes: Sequence[str], several: bool) -> Tensor:
    """Return the labels int64 [n], or label sets uint8 [n, classes]."""
    index = {name: number for number, name in enumerate(classes)}
    if not several:
        return torch.tensor([index[row.labels[0]] for row in rows])
    sets = torch.zeros(len(rows), len(classes), dtype=torch.uint8)
    for shown, row in zip(sets, rows, strict=True):
        shown[[index[label] for label in row.labels]] = 1
    return sets
