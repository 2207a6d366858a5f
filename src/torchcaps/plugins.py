"""Code of others that registers routings, models, data or recipes: a file by `--import FILE`, or an installed package.

A package names a module in the entry-point group `torchcaps.plugins`; it is imported when a list is first asked for. A
file is imported when the user names it, and only then: a run records its name and digest, and nothing is ever imported
because a record says so.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path

from torchcaps.terminal import note

GROUP = "torchcaps.plugins"
HANDED_ON = "TORCHCAPS_IMPORTED"  # to the processes that a command starts: the files that its user named
_LOADED: dict[str, frozenset[str]] = {}  # "NAME SHA256": its modules, in the order of loading


def import_file(path: Path | str) -> str:
    """Import the Python file at `path`, once; returns what a run records of it: its name and a SHA-256.

    It finds the modules and packages that lie beside it, as a program does. The digest is of its bytes, and where it
    imports such neighbours, or they others, of theirs too.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it cannot be imported; says why.
    """
    path = Path(path).expanduser().absolute()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give a Python file to --import")
    neighbours = find_neighbours(path)
    record = f"{path.name} {_digest(path, neighbours)}"
    if record in _LOADED:
        return record
    name = f"torchcaps_import_{path.stem}_{record[-8:]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file: --import takes one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # one that ends would end the command, and as if all were well
        del sys.modules[name]
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    _check_origins(path, neighbours)
    if neighbours and str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for what is imported within a function, later
    _LOADED[record] = frozenset({name, *neighbours})
    os.environ[HANDED_ON] = os.pathsep.join(dict.fromkeys([*handed_on(), str(path)]))
    return record


def find_neighbours(path: Path) -> dict[str, tuple[Path, ...]]:
    """Return the modules and packages beside the Python file `path` that it imports, or that these import, anywhere in
    their code, by name: the files of each.
    """
    found: dict[str, tuple[Path, ...]] = {}
    ahead = [path]
    while ahead:
        for name in _imported_names(ahead.pop()):
            files = _files(path.parent, name)
            if name not in found and files and path not in files:
                found[name] = files
                ahead.extend(files)
    return found


def _imported_names(path: Path) -> set[str]:
    """Return the first parts of the names of all modules that a file imports; none where it is no Python."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # whoever imports it will say so
        return set()
    names = {alias.name for each in ast.walk(tree) if isinstance(each, ast.Import) for alias in each.names}
    names |= {each.module for each in ast.walk(tree) if isinstance(each, ast.ImportFrom) and each.module}
    return {name.partition(".")[0] for name in names}


def _files(folder: Path, name: str) -> tuple[Path, ...]:
    """Return the Python files of the module or package `name` in `folder`; none where it is not there."""
    if (folder / name).is_dir():
        return tuple(sorted((folder / name).rglob("*.py")))
    module = folder / f"{name}.py"
    return (module,) if module.is_file() else ()


def _digest(path: Path, neighbours: Mapping[str, Sequence[Path]]) -> str:
    """Return the SHA-256 of a file, or of it and of the names and bytes of its neighbours."""
    digest = hashlib.sha256(path.read_bytes())
    for name in sorted(neighbours):
        for file in neighbours[name]:
            digest.update(f"\n{file.relative_to(path.parent).as_posix()}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _check_origins(path: Path, neighbours: Mapping[str, Sequence[Path]]) -> None:
    """Raise ValueError where a neighbour has the name of a module that was imported before, from elsewhere."""
    for name, files in neighbours.items():
        origin = getattr(sys.modules.get(name), "__file__", None)
        if origin is not None and Path(origin).resolve() not in {file.resolve() for file in files}:
            raise ValueError(f"{path} imports {files[0]}, but {name} is {origin} already: give yours another name")


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
    return tuple(record for record, modules in _LOADED.items() if kind.__module__.partition(".")[0] in modules)


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
