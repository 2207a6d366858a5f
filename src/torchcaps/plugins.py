"""Code of others that registers routings, models, data or recipes: a file by `--import FILE`, or an installed package.

A package names a module in the entry-point group `torchcaps.plugins`; it is imported when a list is first asked for. A
file is imported when the user names it, and only then: a run records its name and digest, and nothing is ever imported
because a record says so.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from torchcaps.terminal import note

GROUP = "torchcaps.plugins"
HANDED_ON = "TORCHCAPS_IMPORTED"  # to the processes that a command starts: the files that its user named
_LOADED: dict[str, str] = {}  # "NAME SHA256": name of the module, in the order of loading


def import_file(path: Path | str) -> str:
    """Import the Python file at `path`, once; returns what a run records of it: its name and the SHA-256 of its bytes.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it cannot be imported; says why.
    """
    path = Path(path).expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give a Python file to --import")
    content = path.read_bytes()
    record = f"{path.name} {hashlib.sha256(content).hexdigest()}"
    if record in _LOADED:
        return record
    name = f"torchcaps_import_{path.stem}_{record[-8:]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file: --import takes one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # one that ends would end the command, and as if all were well
        del sys.modules[name]
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    _LOADED[record] = name
    os.environ[HANDED_ON] = os.pathsep.join(dict.fromkeys([*handed_on(), str(path)]))
    return record


def handed_on() -> list[str]:
    """Return the paths of the files that the user of this command, or of the one that started it, named."""
    return [each for each in os.environ.get(HANDED_ON, "").split(os.pathsep) if each]


def import_handed_on() -> None:
    """Import in a process that a command started what its user named to that command."""
    for path in handed_on():
        import_file(path)


def imported() -> tuple[str, ...]:
    """Return "NAME SHA256" of each file that was imported, as runs record them."""
    return tuple(_LOADED)


def imported_for(kind: type) -> tuple[str, ...]:
    """Return "NAME SHA256" of the file that defines the class `kind`; empty where it is ours or a package's."""
    return tuple(record for record, module in _LOADED.items() if kind.__module__ == module)


def check_imports(records: Sequence[str], what: str) -> None:
    """Raise ValueError where `what`, such as a run, was made with a file that has not been imported.

    One of another content is taken, and that is said.
    """
    names = {record.partition(" ")[0]: record for record in _LOADED}
    for record in records:
        name = record.partition(" ")[0]
        if name not in names:
            raise ValueError(f"{what} needs the code of {name}, which is not here: give --import FILE with its path")
        if names[name] != record:
            note(f"torchcaps: {name} was changed since {what} was made with it")


@functools.cache
def load_plugins() -> None:
    """Import what installed packages name in the group `torchcaps.plugins`, once; one that fails is named and left."""
    for each in entry_points(group=GROUP):
        try:
            each.load()
        except Exception as error:
            note(f"torchcaps: the plugin {each.name} ({each.value}) cannot be loaded: {error}")
