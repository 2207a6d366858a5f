"""Runs in processes of their own that cost no import: forked from a server that has imported torch once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from torchcaps.config import Config

resource = pytest.importorskip("resource", reason="limits and forks of Unix")  # and so whoever imports this

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tiny", "torchcaps.train", "torchcaps.train.checkpoint"])


def start(function: Callable[..., Any], *args: Any) -> BaseProcess:
    process = FORKS.Process(target=function, args=args, daemon=True)
    process.start()
    return process


def train(config: Config, resume: bool, output: Path | None = None) -> None:
    """One run; what it prints goes to `output`, and the exit status is the command line's."""
    from tiny import tiny  # noqa: F401 - registers the model

    from torchcaps import cli
    from torchcaps.cli import reporting
    from torchcaps.papers import registry

    if output is not None:
        sys.stdout = sys.stderr = open(output, "w", buffering=1)  # noqa: SIM115
        os.dup2(sys.stderr.fileno(), 2)
    registry._RECIPES["tiny"] = lambda: config
    reporting.report = lambda *args, **kwargs: None
    os._exit(cli.main(["train", "tiny", *(["--resume"] if resume else [])]))


def train_until(config: Config, resume: bool, name: str, count: int) -> None:
    """A run that is killed as it makes the call number `count` (from 0) of the function `os.NAME`."""
    calls, function = [], getattr(os, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) > count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(os, name, counted)
    train(config, resume)


def train_on_full_disk(config: Config, resume: bool, limit: int, output: Path) -> None:
    """A run in which no file may grow beyond `limit` bytes, as on a disk without room."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    train(config, resume, output)
