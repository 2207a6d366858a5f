"""Files and folders that are seen whole or not at all, whenever the process that writes them is cut.

Nothing that is read here can execute code: weights are safetensors, the rest is unpickled with `weights_only=True`.
"""

from __future__ import annotations

import errno
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn

from torchcaps import files
from torchcaps.config import UnknownField
from torchcaps.manifest import KEY, Manifest
from torchcaps.terminal import printable

MODEL = "model.safetensors"
STATE = "state.pt"
T = TypeVar("T")


def write_text(path: Path, text: str) -> None:
    """Replace the file `path` by `text` in one step.

    Raises:
        OSError: when it cannot be written, e.g. on a full disk; the old file is still there.
    """
    try:
        files.replace_text(path, text)
    except OSError as error:
        raise _unwritten(path, error) from error


def write_folder(folder: Path, writers: dict[str, Callable[[Path], object]]) -> None:
    """Replace `folder` by one that holds the files that `writers`, by name, write at the path each is given.

    The new folder is complete on the disk before the old one steps aside to `NAME.old`, or where that is still there to
    `NAME.old2` and so on; where a cut falls between the two renames, `present` still finds it.

    Raises:
        OSError: when it cannot be written, e.g. on a full disk; the old folder is still there.
    """
    new = _beside(folder, ".tmp")
    for each in (new, folder, *_asides(folder)):
        files.remove_link(each)
    files.remove_folder(new)
    try:
        new.mkdir()
        for name, write in writers.items():
            files.write_as_new(new / name, write)
            files.sync(new / name)
        sums = "".join(f"{files.digest(new / name)}  {name}\n" for name in writers)
        (new / files.SUMS).write_text(sums, encoding="utf-8", newline="")
        files.sync(new / files.SUMS)
        files.sync(new)
    except Exception as error:  # safetensors and torch.save have errors of their own for what the system refuses
        files.remove_folder(new)
        raise _unwritten(folder, error) from error
    try:
        if folder.exists():
            files.rename(folder, _free(folder))
        files.rename(new, folder)
    except OSError as error:
        raise _unwritten(folder, error) from error
    files.sync(folder.parent)
    for each in _asides(folder):
        files.remove_folder(each)


def _asides(folder: Path) -> list[Path]:
    """Return the names, most of them free, that `folder` may step aside to."""
    return [_beside(folder, f".old{number}") for number in ("", 2, 3, 4)]


def _free(folder: Path) -> Path:
    """Return the first of them that is free; others are left where Windows removes no file that a program has open."""
    asides = _asides(folder)
    return next((each for each in asides if not each.exists()), asides[-1])


def present(folder: Path) -> Path | None:
    """Return where the newest whole state of a folder that `write_folder` writes is found; None before the first."""
    if folder.exists():
        return folder
    return max((each for each in _asides(folder) if each.exists()), key=_written, default=None)


def _written(folder: Path) -> int:
    """Return when the folder of a checkpoint was whole, in nanoseconds; 0 of one that is so no more, or is old."""
    sums = folder / files.SUMS
    return sums.stat().st_mtime_ns if sums.exists() else 0


def save_checkpoint(
    folder: Path, model: nn.Module, state: dict | None = None, manifest: Manifest | None = None
) -> None:
    """Write weights and buffers of `model` to `folder` and, where given, `state` of plain containers and tensors.

    `manifest` goes into the metadata of the weights, so that the one file can be used without its run.
    """
    metadata = None if manifest is None else {KEY: manifest.to_json()}
    writers: dict[str, Callable[[Path], object]] = {MODEL: lambda path: save_model(model, str(path), metadata)}
    if state is not None:
        writers[STATE] = lambda path: torch.save(state, path)
    write_folder(folder, writers)


def load_weights(folder: Path, model: nn.Module) -> None:
    """Read weights and buffers, written by `save_checkpoint` to `folder`, into `model`.

    Raises:
        FileNotFoundError: when `folder` holds no checkpoint.
        ValueError: when it is damaged, or of another model.
    """
    found = present(folder)
    if found is None:
        raise FileNotFoundError(f"no checkpoint in {folder}")
    _read(found / MODEL, lambda path: load_model(model, str(path)))


def copy_checkpoint(folder: Path, weights: Path, state: dict | None = None) -> None:
    """Write a checkpoint to `folder` of the file `weights`, as it is, and `state`, as `save_checkpoint` takes it.

    Raises:
        ValueError: where the file is not as it was written; the copy has sums of its own.
    """
    check_whole(weights)
    writers: dict[str, Callable[[Path], object]] = {MODEL: lambda path: shutil.copyfile(weights, path)}
    if state is not None:
        writers[STATE] = lambda path: torch.save(state, path)
    write_folder(folder, writers)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights and buffers in the checkpoint `folder`, by name, on the CPU.

    Raises:
        ValueError: when they are damaged.
    """
    return _read(folder / MODEL, lambda path: load_file(str(path)))


def load_state(folder: Path) -> dict:
    """Return the state, on the CPU, of the checkpoint in `folder`; call it only where `present(folder)`.

    Raises:
        ValueError: when it is damaged, or holds anything but plain containers and tensors.
    """
    found = present(folder)
    assert found is not None, folder
    return _read(found / STATE, lambda path: torch.load(path, map_location="cpu", weights_only=True))


def damaged(path: Path, error: Exception) -> ValueError:
    """Return the error, in one line, for a file of a run that `error` was raised on reading."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, pickle.UnpicklingError):  # torch's own message tells how to run the code all the same
        reason = "it holds more than plain tensors, which is refused, since unpickling can run code"
    if isinstance(error, UnknownField):
        return ValueError(f"{path} was changed, or is of a later version: {reason}; update torchcaps to read it")
    return ValueError(f"{path} is damaged or not of this run: {reason}; bring back a copy of it, or start a new run")


def check_whole(path: Path) -> None:
    """Raise ValueError, which names it, where `path`, the file of a checkpoint, is not as it was written."""
    try:
        files.check_sum(path)
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error


def _read(path: Path, read: Callable[[Path], T]) -> T:
    """Return what `read` makes of `path`, the file of a checkpoint, where it is as it was written."""
    try:
        if not files.check_sum(path):
            said = printable(f"torchcaps: {path} is read unchecked: there is no {files.SUMS} beside it")
            warnings.warn(said, stacklevel=4)
        return read(path)
    except Exception as error:  # bytes that are not what they should be raise anything: zip, struct, pickle, key errors
        raise damaged(path, error) from error


def _unwritten(path: Path, error: Exception) -> OSError:
    """Return the error, in one line, for a file that could not be written, and what would help."""
    reason, code = " ".join(str(error).split()), getattr(error, "errno", None)
    if code in (errno.EACCES, errno.EPERM, errno.EROFS) or "ermission denied" in reason:
        mend = "close that" if "another program" in reason else "allow writing there"
    elif code == errno.ENOENT and not path.parent.exists():
        return OSError(f"cannot write {path} ({reason}): the folder {path.parent} is gone; start a new run")
    else:
        mend = "make room"
    return OSError(f"cannot write {path} ({reason}): what was there is kept; {mend}, then continue with --resume")


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)
