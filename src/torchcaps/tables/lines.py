"""Files of JSON lines to which several processes append: a line is there whole or not at all.

Whoever appends holds a lock meanwhile, in a folder beside the file. What a kill or a power cut has
left of a last line is no line: readers pass over it, and the next writer sets it aside in FILE.torn. Both say so in the
log.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torchcaps.locking import wait_for
from torchcaps.terminal import warn

CLAIMS = ".claims"  # folder beside the lines, of lock files: of the lines, and of what is being done for them


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in the file `path`, oldest first; none where it is not there.

    Raises:
        ValueError: for a line that is not a JSON object, which is named, and for what is no file.
        OSError: when the file cannot be read.
    """
    if not path.exists():
        return []
    _check_file(path, os.stat(path).st_mode)
    whole, _, last = path.read_bytes().rpartition(b"\n")
    found = []
    for number, line in enumerate(whole.split(b"\n") if whole else [], 1):
        parsed = _parse(line)
        if parsed is None:
            raise ValueError(f"line {number} of {path} is not a JSON object: mend it, or take it out")
        found.append(parsed)
    if last and (parsed := _parse(last)) is not None:
        found.append(parsed)
    elif last:
        warn(f"the last line of {path} was cut off and is not read; its writer sets it aside")
    return found


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Add a line to the file `path`, which is made where it is not there.

    Raises:
        OSError: when it cannot be written, e.g. on a full disk; the file is as it was.
        ValueError: for what is no file and for a number that is not finite, and TypeError for other content that JSON
            cannot hold.
    """
    try:
        data = (json.dumps(content, allow_nan=False) + "\n").encode()
    except ValueError as error:
        raise ValueError(f"a line for {path} holds what JSON cannot ({error}): leave it out, or write null") from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _held(path) as file:
            _set_torn_aside(path, file)
            end = os.fstat(file).st_size
            try:
                _write(file, data)
                os.fsync(file)
            except BaseException:  # an interruption too leaves no half line
                os.ftruncate(file, end)
                raise
    except OSError as error:
        reason = error.strerror or str(error)
        mend = f"put that right for {path}, and give the same command again"
        raise type(error)(f"cannot add a line to {path} ({reason}), which is as it was: {mend}") from error


@contextmanager
def _held(path: Path) -> Iterator[int]:
    """Return the descriptor of the file `path`, to read and to append, which other writers wait for."""
    plain = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # of Unix; of Windows, which adds \r to \n else
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | plain, 0o666)
    try:
        _check_file(path, os.fstat(file).st_mode)
        claims = path.parent / CLAIMS
        claims.mkdir(exist_ok=True)
        with wait_for(claims / f"{path.name}.lock"):
            yield file
    finally:
        os.close(file)


def _check_file(path: Path, mode: int) -> None:
    """Raise ValueError for a FIFO, a device or a folder, of which the first would be waited for without end."""
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is not a file of lines: give another place for the results")


def _set_torn_aside(path: Path, file: int) -> None:
    """End the last line where only its end is missing, and move what is none to FILE.torn."""
    with os.fdopen(os.dup(file), "rb") as reader:
        content = reader.read()
    last = content.rpartition(b"\n")[2]
    if not last:
        return
    if _parse(last) is not None:
        _write(file, b"\n")
        return
    aside = path.with_name(path.name + ".torn")
    with aside.open("ab") as torn:
        torn.write(last + b"\n")
    os.ftruncate(file, len(content) - len(last))
    warn(f"the last line of {path} was cut off: what there is of it is in {aside} now")


def _write(file: int, data: bytes) -> None:
    """Write all of `data`: a full disk may take a part of it first."""
    while data:
        data = data[os.write(file, data) :]


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object that `line` is, or None."""
    try:
        parsed = json.loads(line)
    except (RecursionError, ValueError):
        return None
    return parsed if isinstance(parsed, dict) else None
