"""What scripts that hold kernels to the plain forms do with one that fails: they say it, and go on to the next."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch


class Held:
    """Comparisons one after another, of which each is a line as soon as it has ended.

    A script on a GPU may be cut at any time, and on a machine that is lent every case counts.
    """

    def __init__(self) -> None:
        self.failed: list[str] = []

    def __call__(self, name: str, compare: Callable[..., None], *inputs: Any) -> None:
        """Call `compare(*inputs)`, and say under `name` what came of it."""
        start = time.monotonic()
        try:
            compare(*inputs)
        except Exception as error:  # of a kernel that is not compiled, or wrong
            said = next(filter(None, map(str.strip, str(error).splitlines())), "")
            self.failed.append(f"{name}: {type(error).__name__}: {said}")
            print(self.failed[-1], flush=True)
        else:
            print(f"{name}: equal, {time.monotonic() - start:.1f} s", flush=True)

    def end(self) -> None:
        """End the script, by status 1 where one failed; all that did are its last lines."""
        if self.failed:
            print("\n".join(self.failed))
            sys.exit(1)


def types(quick: bool) -> tuple[torch.dtype, ...]:
    """Return what a GPU is tried in, one after the other: what networks train in first, and `quick` nothing else."""
    return (torch.float32,) if quick else (torch.float32, torch.float64)
