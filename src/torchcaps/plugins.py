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
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

from torchcaps.files import expand_home
from torchcaps.terminal import note

GROUP = "torchcaps.plugins"
HANDED_ON = "TORCHCAPS_IMPORTED"  # to the processes that a command starts: a JSON list of the files that its user named
_ASKED: list[str] = []  # groups of entry points that are loaded, or being loaded
_LOADED: dict[str, frozenset[str]] = {}  # "NAME SHA256": its modules, in the order of loading
_READ: dict[str, str] = {}  # neighbours that are loaded: the SHA-256 of each


class Neighbours(NamedTuple):
    """What lies beside a file and is imported by it."""

    folder: Path
    files: dict[str, tuple[Path, ...]]  # by the name of the module or package


def import_file(path: Path | str) -> str:
    """Import the Python file at `path`, once; returns what a run records of it: its name and a SHA-256.

    It finds the modules and packages that lie beside it, see `find_neighbours`. The digest is of its bytes, and where
    it imports such neighbours, or they others, of theirs too.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it cannot be imported, or when a neighbour has the name of another module; says why.
    """
    path = expand_home(path).absolute()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give a Python file to --import")
    neighbours = find_neighbours(path)
    record = f"{path.name} {_digest(path, neighbours)}"
    if record in _LOADED:
        return record
    name = f"torchcaps_import_{path.stem.replace('.', '_')}_{record[-8:]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file: --import takes one that ends in .py")
    _prepare(path, neighbours)
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        _check_told(neighbours, set(sys.modules) - before)
    except (Exception, SystemExit) as error:  # one that ends would end the command, and as if all were well
        _forget({name} | {each for each in set(sys.modules) - before if each.partition(".")[0] in neighbours.files})
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    _READ.update({each: _sha(neighbours, each) for each in neighbours.files})
    _LOADED[record] = frozenset({name, *neighbours.files})
    os.environ[HANDED_ON] = json.dumps(list(dict.fromkeys([*handed_on(), str(path)])))
    return record


def find_neighbours(path: Path) -> Neighbours:
    """Return the modules, and packages with an `__init__.py`, beside the Python file `path` that it imports, or that
    these import, anywhere in their code by an `import` statement.

    Raises:
        ValueError: when one of them cannot be read.
    """
    path = path.resolve()  # a link's neighbours are those of the file, as of a program
    found: dict[str, tuple[Path, ...]] = {}
    ahead = [path]
    while ahead:
        for name in _imported_names(ahead.pop()) - {"torchcaps", *found}:
            files = _files(path.parent, name)
            if files and path not in files:
                found[name] = files
                ahead.extend(files)
    return Neighbours(path.parent, found)


def _imported_names(path: Path) -> set[str]:
    """Return the first parts of the names of all modules that a file imports; none where it is no Python."""
    try:
        tree = ast.parse(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except (SyntaxError, ValueError):  # whoever imports it will say so
        return set()
    names = {alias.name for each in ast.walk(tree) if isinstance(each, ast.Import) for alias in each.names}
    froms = [each for each in ast.walk(tree) if isinstance(each, ast.ImportFrom) and not each.level]
    names |= {each.module for each in froms if each.module}
    return {name.partition(".")[0] for name in names}


def _files(folder: Path, name: str) -> tuple[Path, ...]:
    """Return the Python files of the package or module `name` in `folder`; none where it is not there."""
    if (folder / name / "__init__.py").is_file():
        return tuple(sorted(file for file in (folder / name).rglob("*.py") if file.is_file()))
    module = folder / f"{name}.py"
    return (module,) if module.is_file() else ()


def _digest(path: Path, neighbours: Neighbours) -> str:
    """Return the SHA-256 of a file, or of it and of the names and digests of its neighbours."""
    digest = hashlib.sha256(path.read_bytes())
    for name in sorted(neighbours.files):
        digest.update(f"\n{name} {_sha(neighbours, name)}".encode())
    return digest.hexdigest()


def _sha(neighbours: Neighbours, name: str) -> str:
    digest = hashlib.sha256()
    for file in neighbours.files[name]:
        digest.update(f"{file.relative_to(neighbours.folder).as_posix()} {file.stat().st_size}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _prepare(path: Path, neighbours: Neighbours) -> None:
    """See to it that each neighbour is what its name will import, now and later, and as it is on the disk.

    Raises:
        ValueError: where another module has the name of one.
    """
    for name, files in neighbours.files.items():
        origin = _origin(name)
        if origin is not None and Path(origin).resolve() not in {file.resolve() for file in files}:
            raise ValueError(f"{path} imports {files[0]}, but {name} is {origin}: give yours another name")
        if name in sys.modules and _READ.get(name) != _sha(neighbours, name):
            _forget({each for each in sys.modules if each.partition(".")[0] == name})
    if neighbours.files and str(neighbours.folder) not in sys.path:
        sys.path.append(str(neighbours.folder))  # last, and for good: a function may import one when it is called
    importlib.invalidate_caches()


def _origin(name: str) -> str | None:
    """Return the file of what `import name` gives; None where it gives nothing. Built-in modules have no file but a
    word.
    """
    if (module := sys.modules.get(name)) is not None:
        return getattr(module, "__file__", None) or "built-in"
    spec = importlib.util.find_spec(name)
    return None if spec is None else spec.origin or None


def _check_told(neighbours: Neighbours, loaded: Iterable[str]) -> None:
    """Raise ValueError where one of `neighbours` was imported otherwise than by a statement: no digest tells of it."""
    for name in {each.partition(".")[0] for each in loaded} - set(neighbours.files):
        if _origin(name) in [str(file) for file in _files(neighbours.folder, name)]:
            raise ValueError(f"it imports {name} without saying so; write `import {name}`")


def _forget(names: Iterable[str]) -> None:
    for name in names:
        del sys.modules[name]


def handed_on() -> list[str]:
    """Return the paths of the files that the user of this command, or of the one that started it, named."""
    written = os.environ.get(HANDED_ON)
    return list(map(str, json.loads(written))) if written else []


def own_files() -> list[str]:
    """Return the flags of a command that name these files again."""
    return [word for path in handed_on() for word in ("--import", path)]


def import_handed_on() -> None:
    """Import in a process that a command started what its user named to that command."""
    for path in handed_on():
        import_file(path)


def imported() -> tuple[str, ...]:
    """Return "NAME SHA256" of each file that was imported, as runs record them."""
    return tuple(_LOADED)


def imported_for(kind: type | Callable[..., Any]) -> tuple[str, ...]:
    """Return "NAME SHA256" of the file that defines a class or function; empty where it is ours or a package's."""
    while isinstance(kind, functools.partial):
        kind = kind.func
    first = (kind.__module__ or "").partition(".")[0]  # None of a function that was made by exec
    return tuple(record for record, modules in _LOADED.items() if first in modules)


def file_of(record: str) -> str:
    """Return the name of the file, which may have spaces, in "NAME SHA256"."""
    return record.rpartition(" ")[0]


def check_imports(records: Sequence[str], what: str) -> None:
    """Raise ValueError where `what`, such as a run, was made with a file that has not been imported.

    One of another content is taken, and that is said.
    """
    names = {file_of(record): record for record in _LOADED}
    for record in records:
        name = file_of(record)
        if name not in names:
            raise ValueError(f"{what} needs the code of {name}, which is not here: give --import FILE with its path")
        if names[name] != record:
            note(f"torchcaps: {name} was changed since {what} was made with it")


def load_plugins() -> None:
    """Import what installed packages name in the group `torchcaps.plugins`, once; one that fails is named and left.

    One that asks for a list itself, while it is imported, finds what is there so far.
    """
    if _ASKED:
        return
    _ASKED.append(GROUP)
    for each in entry_points(group=GROUP):
        try:
            each.load()
        except (Exception, SystemExit) as error:  # one that ends would end the command, and as if all were well
            note(f"torchcaps: the plugin {each.name} ({each.value}) cannot be loaded: {type(error).__name__}: {error}")
