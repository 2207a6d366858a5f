"""Files that are written whole or not at all, and never through somebody else's links.

The folder of a run may come from a stranger. So temporary files are made exclusively, under names that cannot be
foretold; what a name leads to elsewhere is replaced, never followed; and what is no plain file is not opened, since to
open a pipe waits for ever.

Windows renames and removes nothing that another program holds open, as a virus scanner does a file that has just been
written, for a moment. So that is tried again there for some seconds.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

POLICY = (  # of a page of HTML without scripts: it shows pictures beside it, and loads nothing else
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data: file: 'self'; "
    "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">"
)
SUMS = "SHA256SUMS"  # of the files beside it; `sha256sum --check` reads it too
WINDOWS = os.name == "nt"
WAITS = (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.5, 0.5, 0.7, 0.7)  # seconds, before what is held open is tried again


def expand_home(path: str | Path) -> Path:
    """Return a path with ~ as the home folder that it stands for.

    Raises:
        ValueError: where no such user, or no home, is known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{path} begins with ~, the home folder of a user, and there is none of that name: write the folder out, "
            f"or ./{path} where that is its own name"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Return a fresh file beside `path`, to be written in the block, that then takes its place in one step.

    It is created exclusively, with the mode that a new file has, and has the suffix of `path`, by which some writers
    choose their format. Where the block fails it is removed, and `path` is as it was.

    Raises:
        OSError: when it cannot be written, e.g. on a full disk.
    """
    temporary = path.with_name(f".{path.stem}.{os.urandom(8).hex()}{path.suffix}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0), 0o666)
    os.close(descriptor)
    try:
        with _keeping_mode(temporary):
            yield temporary
        sync(temporary)
        replace(temporary, path)
        sync(path.parent)
    finally:
        with suppress(PermissionError):  # of Windows, which would hide why the block failed
            temporary.unlink(missing_ok=True)


def replace(source: Path, target: Path) -> None:
    """Give the file `source` the name `target`, in place of a file that has it; raises as `rename`."""
    _patiently(lambda: os.replace(source, target), target)


def rename(source: Path, target: Path) -> None:
    """Give `source`, a file or a folder, the name `target`, which is free.

    Raises:
        OSError: when that cannot be; on Windows after three seconds, saying so, where another program has it open.
    """
    _patiently(lambda: os.rename(source, target), source)


def remove_folder(folder: Path) -> bool:
    """Take `folder` away with what is in it, as far as the system lets go of it; return whether it is gone."""
    with suppress(OSError):
        _patiently(lambda: shutil.rmtree(folder), folder)
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def _patiently(act: Callable[[], object], path: Path) -> None:
    """Call `act` until no other program holds `path` open any more, but not for ever."""
    for seconds in WAITS if WINDOWS else ():
        try:
            act()
            return
        except OSError as error:
            if not _held(error):
                raise
            time.sleep(seconds)
    try:
        act()
    except OSError as error:
        if not (WINDOWS and _held(error)):
            raise
        raise PermissionError(error.errno, "another program has it open", str(path)) from error


def _held(error: OSError) -> bool:
    """Return whether Windows may have raised `error` for what is open elsewhere; a folder of that is not empty."""
    return isinstance(error, PermissionError) or error.errno == errno.ENOTEMPTY


def write_as_new(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` write the file `path`, which is not there yet; it gets the mode that a new file there has."""
    path.touch(exist_ok=False)
    with _keeping_mode(path):
        write(path)


@contextmanager
def _keeping_mode(path: Path) -> Iterator[None]:
    """Give the file `path` its mode back after the block, where a writer has put a file of its own in its place."""
    mode = stat.S_IMODE(path.stat().st_mode)
    yield
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the file `path` by `content`, see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def replace_text(path: Path, text: str) -> None:
    """Replace the file `path` by `text`, see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def own_folder(folder: Path, make: bool = False) -> Path:
    """Return `folder`, made where `make` says so and it is missing.

    Raises:
        ValueError: when it is a link, which may lead out of the folder that it stands in, or no folder.
    """
    if make and not folder.is_symlink():
        folder.mkdir(parents=True, exist_ok=True)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        what = "a link" if folder.is_symlink() else "no folder"
        raise ValueError(f"{folder} is {what}: it must be a folder of its own; take it away")
    return folder


def check_plain(path: Path) -> None:
    """Raise ValueError where something stands at `path` that is no plain file: a pipe, a device, a folder."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise ValueError(f"{path} cannot be read: {path.parent} is no folder") from error
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise ValueError(f"{path} is a link that leads in a circle; it must be a file") from error
    if not stat.S_ISREG(mode):
        kinds = {"a folder": stat.S_ISDIR, "a pipe": stat.S_ISFIFO, "a device": stat.S_ISCHR, "a socket": stat.S_ISSOCK}
        what = next((name for name, is_one in kinds.items() if is_one(mode)), "a device")
        raise ValueError(f"{path} is {what}; it must be a file")


def read_plain(path: Path) -> str:
    """Return the text of the plain file `path`, in UTF-8.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when it is no plain file, or not UTF-8.
    """
    check_plain(path)
    return path.read_text(encoding="utf-8")


def remove_link(path: Path) -> None:
    """Take away the link `path`, where it is one; what it leads to stays."""
    if path.is_symlink():
        path.unlink()


def sync(path: Path) -> None:
    """Wait until `path`, a file or a folder's list of names, is on the disk."""
    if path.is_dir() and WINDOWS:  # where folders cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_sum(path: Path) -> bool:
    """Return whether `path`, a file, has a sum beside it in `SUMS`, which then is its own.

    Raises:
        ValueError: where it is no plain file, or the sums do not name it, or its own is another.
    """
    check_plain(path)
    sums = path.with_name(SUMS)
    if not (sums.exists() or sums.is_symlink()):
        return False
    known = {name: found for found, _, name in (line.partition("  ") for line in read_plain(sums).splitlines())}
    if path.name not in known:
        raise ValueError(f"{SUMS} beside it does not name it")
    if known[path.name] != digest(path):
        raise ValueError(f"its contents do not match {SUMS}")
    return True


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
