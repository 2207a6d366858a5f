"""Files and folders that are seen whole or not at all, whenever the process that writes them is cut."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import nn

MODEL = "model.safetensors"
STATE = "state.pt"


def write_text(path: Path, text: str) -> None:
    """Replace the file `path` by `text` in one step."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def write_folder(folder: Path, writers: dict[str, Callable[[Path], object]]) -> None:
    """Replace `folder` by one that holds the files that `writers`, by name, write at the path each is given.

    The new folder is complete on the disk before the old one steps aside to `NAME.old`; where a cut falls between the
    two renames, `present` still finds the old one.
    """
    new, old = _beside(folder, ".tmp"), _beside(folder, ".old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    for name, write in writers.items():
        write(new / name)
        _sync(new / name)
    _sync(new)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
    os.rename(new, folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def present(folder: Path) -> Path | None:
    """Where the newest whole state of a folder that `write_folder` writes is found; None before the first."""
    return next((path for path in (folder, _beside(folder, ".old")) if path.exists()), None)


def save_checkpoint(folder: Path, model: nn.Module, state: dict | None = None) -> None:
    """Write weights and buffers of `model` to `folder` and, where given, `state` of plain containers and tensors."""
    writers: dict[str, Callable[[Path], object]] = {MODEL: lambda path: save_model(model, str(path))}
    if state is not None:
        writers[STATE] = lambda path: torch.save(state, path)
    write_folder(folder, writers)


def load_weights(folder: Path, model: nn.Module) -> None:
    """Read weights and buffers, written by `save_checkpoint` to `folder`, into `model`.

    Raises:
        FileNotFoundError: when `folder` holds no checkpoint.
    """
    found = present(folder)
    if found is None:
        raise FileNotFoundError(f"no checkpoint in {folder}")
    load_model(model, str(found / MODEL))


def load_state(folder: Path) -> dict:
    """The state, on the CPU, of the checkpoint in `folder`; call it only where `present(folder)`."""
    found = present(folder)
    assert found is not None, folder
    return torch.load(found / STATE, map_location="cpu", weights_only=True)


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)


def _sync(path: Path) -> None:
    """Wait until `path`, a file or a folder's list of names, is on the disk."""
    if path.is_dir() and os.name == "nt":  # where folders cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
