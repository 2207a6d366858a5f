"""Which data sets there are, and where they lie. Nothing here imports torch, so that listings answer at once.

`CATALOGUE` is the only list: the command line, the readers and the tests take their names from it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from torchcaps.config import EXTERNAL, ComposeConfig, DataConfig
from torchcaps.data.entries import ENTRIES
from torchcaps.data.entry import PATHS, Entry
from torchcaps.files import expand_home
from torchcaps.names import unknown
from torchcaps.plugins import load_plugins

CATALOGUE: dict[str, Entry] = {}


def register(entry: Entry) -> Entry:
    """Add `entry`, which lists it, makes it loadable by name and tested. One of your own that is defined again, with
    the same reader, takes the place of what it was.

    Raises:
        ValueError: when another one has the name.
    """
    before = CATALOGUE.get(entry.name)
    if before is not None and before != entry and (before in ENTRIES or before.reader != entry.reader):
        raise ValueError(f"data set {entry.name!r} is already registered, read by {before.reader}")
    CATALOGUE[entry.name] = entry
    return entry


def list_entries() -> list[Entry]:
    """Return the entries of all data sets, those of installed packages among them."""
    load_plugins()
    return [*CATALOGUE.values()]


def find(name: str) -> tuple[Entry, Path | None]:
    """Return the entry of `name`, and the path of `npz:PATH`, `folder:PATH` or `list:FILE` (None for a named set).

    Raises:
        ValueError: for an unknown name, with the nearest known one; for a missing path, and one in an unknown home.
    """
    if name == EXTERNAL:
        raise ValueError("data.name is 'external': these images were handed to fit in Python, and are not here")
    load_plugins()
    prefix, colon, path = name.partition(":")
    wanted = (prefix + end for end in PATHS) if colon else (name,)
    entry = next((CATALOGUE[each] for each in wanted if each in CATALOGUE), None)
    if not colon and (entry is None or entry.takes_path) and _is_folder(name):
        raise ValueError(f"data.name is {name!r}, a folder: pictures in folders of their classes are folder:{name}")
    if entry is None or (entry.takes_path and not colon):
        raise unknown("data set", name, CATALOGUE, "`torchcaps list data` shows all")
    if colon and not path:
        raise ValueError(f"data set {name!r} lacks its path: write {entry.name}")
    return entry, expand_home(path) if colon else None


def _is_folder(name: str) -> bool:
    try:
        return expand_home(name).is_dir()
    except ValueError:
        return False


def composition(config: DataConfig) -> ComposeConfig | None:
    """Return how the images of `config` are composed, with the settings of the named set where its own are None; None
    where they are not.
    """
    preset = find(config.name)[0].compose
    if preset is None:
        return None
    return replace(preset, **{name: value for name, value in vars(config.compose).items() if value is not None})


def plain_name(name: str) -> str:
    """Return the name of a data set without the folders above the user's own files, which concern nobody else."""
    kind, colon, path = name.partition(":")
    return f"{kind}:{expand_home(path).absolute().name}" if colon else name


def data_root(root: Path | None = None) -> Path:
    """Return the folder of the data sets: `root`, else $TORCHCAPS_DATA, else torchcaps/data in the user's cache
    folder.
    """
    if root is not None:
        return expand_home(root)
    if chosen := os.environ.get("TORCHCAPS_DATA"):
        return expand_home(chosen)
    return cache_root() / "data"


def cache_root() -> Path:
    """Return the folder of what can be made again: $TORCHCAPS_CACHE, else torchcaps in the user's cache folder.

    Raises:
        ValueError: where the user has no home, as in a container under a number that no name belongs to.
    """
    if chosen := os.environ.get("TORCHCAPS_CACHE"):
        return expand_home(chosen)
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "torchcaps"
    try:
        return Path.home() / ".cache" / "torchcaps"
    except RuntimeError as error:
        raise ValueError(
            "this user has no home folder to keep data in: set TORCHCAPS_CACHE to a folder, or for data sets alone "
            "TORCHCAPS_DATA"
        ) from error


def absent(entry: Entry, root: Path) -> list[str]:
    """Return the files of `entry` that are not in the data folder `root`: relative paths, none where the set is
    there.
    """
    return [group[0] for group in entry.files if not any((root / name).exists() for name in group)]


for each in ENTRIES:
    register(each)
