"""Which pictures lie in a folder, of which split and class; what is no picture is named. Nothing here opens a file.

A folder is PATH/SPLIT/CLASS/** of the splits train, test and, if wanted, validation; or PATH/CLASS/** without splits.
Hidden files and folders are passed over; symbolic links are followed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from torchcaps.data.notes import some
from torchcaps.data.pictures import suffixes, walk

SPLITS = {  # names of folders, in lower case
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "validate", "dev", "development"),
    "test": ("test", "testing"),
}
_KNOWN = ", ".join(name for names in SPLITS.values() for name in names)


class Tree(NamedTuple):
    """Pictures by split ("" where there are none) and class, and what else lies there."""

    splits: dict[str, dict[str, list[str]]]
    classes: tuple[str, ...]  # of the training split, or of all
    left: list[str]  # files that are no pictures, or that no class has
    below: list[str]  # folders below class folders, whose pictures are among those of the class


def list_tree(path: Path) -> Tree:
    """List the image folder `path`; see the head of this file.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: when folders lie beside the splits, when splits lie below class folders, when a class folder is
            named like a split, when class folders hold no pictures but folders of the same names, when there is a
            training or a test split without the other, when the training split or one of its classes holds no
            pictures, and when another split has a class that it lacks.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}: give the path of an image folder as folder:PATH")
    folders = _find_splits(path)
    splits, left, below = {}, [], []
    for name, folder in folders.items():
        files, loose = _list_classes(folder, below)
        splits[name] = files
        left += loose
    if "" not in folders:
        left = _loose(path) + left
    for split, folder in folders.items():
        _check_depth(folder, split, splits[split])
    first, *others = splits
    classes = tuple(splits[first])
    for name in classes:
        if not splits[first][name]:
            raise ValueError(f"the class folder {folders[first] / name} holds no images")
    for split in others:
        for name in splits[split]:
            if name not in classes:
                raise ValueError(f"class {name!r} of {folders[split]} has no folder among the training images")
    for split, folder in folders.items():
        if not any(splits[split].values()):
            raise ValueError(f"{folder} holds no images: they are looked for in {folder}/CLASS/**.png, .jpg, ...")
    return Tree(splits, classes, left, below)


def list_pictures(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Return the pictures in `folder` and in all folders below it, by name; other files; and the folders below that
    hold some.

    Those of a folder come before those of the folders in it.
    """
    pictures, left, below = [], [], []
    for file in walk(folder):
        if os.path.splitext(file)[1].lower() not in suffixes():
            left.append(file)
            continue
        pictures.append(file)
        if (parent := os.path.dirname(file)) != str(folder) and parent not in below[-1:]:
            below.append(parent)
    return pictures, left, below


def _find_splits(path: Path) -> dict[str, Path]:
    """Return the folder of each split, the training split first; {"": path} where the folders are classes."""
    folders = _folders(path)
    named = {folder: _split_of(folder) for folder in folders}
    if not {"train", "test"} & set(named.values()):
        _check_classes(path, folders)
        return {"": path}
    found: dict[str, Path] = {}
    for folder, split in named.items():
        if split is None:
            raise ValueError(f"{folder} lies beside the splits of {path}, and is none: they are named {_KNOWN}")
        if split in found:
            raise ValueError(f"{found[split]} and {folder} are both the {split} split: leave one of them")
        found[split] = folder
    for split in ("train", "test"):
        if split not in found:
            raise ValueError(f"{path} has no folder {split!r} beside {', '.join(folder.name for folder in folders)}")
    return {split: found[split] for split in SPLITS if split in found}


def _split_of(folder: Path) -> str | None:
    return next((split for split, names in SPLITS.items() if folder.name.lower() in names), None)


def _check_classes(path: Path, folders: list[Path]) -> None:
    """Raise ValueError where the folders in `path` are not classes, but hold splits or classes themselves."""
    for folder in folders:
        within = _folders(folder)
        splits = {_split_of(each) for each in within} - {None}
        if "train" in splits and len(splits) > 1:
            names = ", ".join(each.name for each in within)
            mend = f"give folder:{folder}" if len(folders) == 1 else f"move them up, to {path}/SPLIT/{folder.name}"
            raise ValueError(f"{folder} holds the splits {names}, so it is no class: {mend}")
        if len(folders) == 1 and len(within) > 1 and not any(child.is_file() for child in folder.iterdir()):
            names = some([each.name for each in within])
            raise ValueError(f"{path} has one folder, {folder.name}, which holds {names}: give folder:{folder}")
        if split := _split_of(folder):
            raise ValueError(
                f"{folder} is named like the {split} split, and no folder beside it like the training split: name that "
                f"one train, and the others as splits are ({_KNOWN}); or if {folder.name} is a class, name it otherwise"
            )


def _check_depth(folder: Path, split: str, classes: dict[str, list[str]]) -> None:
    """Raise ValueError where all `classes` in `folder`, which is a `split` or "", hold no pictures but two or more
    folders of the same names: these may be the classes, and what was taken for classes splits or parts.
    """
    held = []
    for name, files in classes.items():
        above = str(folder / name)
        if not files or os.path.dirname(files[0]) == above:  # pictures of a folder come before those below it
            return
        held.append({Path(each).relative_to(above).parts[0] for each in {os.path.dirname(file) for file in files}})
    if len(held) < 2 or len(common := set.intersection(*held)) < 2:
        return
    outer, inner = some(list(classes)), some(sorted(common))
    mend = f"move them up, into {folder}" if split else f"name {outer} as splits are ({_KNOWN})"
    raise ValueError(
        f"{outer} of {folder} hold no pictures of their own, but each of them folders {inner}: if {inner} are the "
        f"classes, {mend}; if {outer} are, move the pictures up into them, or name all in a table (list:FILE)"
    )


def _list_classes(folder: Path, below: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the pictures of each class folder, in the order of their names, and other files; folders go to `below`."""
    classes, left = {}, _loose(folder)
    for child in _folders(folder):
        classes[child.name], others, deeper = list_pictures(child)
        left += others
        below += deeper
    return classes, left


def _folders(path: Path) -> list[Path]:
    found = [child for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")]
    for folder in found:
        try:
            folder.name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the name of the folder {str(folder)!r} is not UTF-8: rename it") from error
    return sorted(found, key=lambda folder: folder.name)  # paths themselves are in another order on Windows


def _loose(path: Path) -> list[str]:
    """Return the files that lie beside folders.

    Raises:
        ValueError: for a link that leads nowhere: the pictures of a class may have lain there.
    """
    for child in path.iterdir():
        if child.is_symlink() and not child.exists():
            raise ValueError(f"{child} is a link to {os.readlink(child)}, which is not there: mend it, or take it away")
    return sorted(str(child) for child in path.iterdir() if not child.is_dir() and not child.name.startswith("."))
