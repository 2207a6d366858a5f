"""How a run is stopped from outside: by signals, between two steps."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import threading
import time
from multiprocessing import get_context
from types import FrameType, TracebackType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, and has saved; its message says where."""


class Interruption:
    """Takes a first SIGINT or SIGTERM as a request to stop, which a run looks at between steps; the second one raises.

    A context: outside it, signals do what they did before. Only the main thread receives signals; elsewhere `asked` can
    only be set by hand. The process that starts the others hands them its `Interruption`: the request is in memory that
    all share, without a lock, which a killed process might hold for ever. They take SIGINT as it does (from a terminal
    all get it, and from the system where the first process has died), and end at once on SIGTERM, which is sent to
    them when one of them has died.

    Args:
        shared: whether other processes are to see the request.
        minutes: after which it is as if a signal had come; None: never.
    """

    def __init__(self, shared: bool = False, minutes: float | None = None):
        self._end = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self._asked: Any = get_context("spawn").RawValue(ctypes.c_bool, False) if shared else ctypes.c_bool(False)
        self._signals = [signal.SIGINT, signal.SIGTERM]
        self._before: dict[signal.Signals, Any] = {}
        self._heard = False
        self._quiet = False

    def __getstate__(self) -> dict:
        return {
            "_asked": self._asked,
            "_signals": [signal.SIGINT],
            "_before": {},
            "_heard": False,
            "_quiet": True,
            "_end": self._end - time.monotonic() + time.time(),  # monotonic clocks of two processes may differ
        }

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state | {"_end": state["_end"] - time.time() + time.monotonic()})

    @property
    def asked(self) -> bool:
        """Return whether the run shall stop."""
        return self._asked.value or time.monotonic() >= self._end

    @asked.setter
    def asked(self, value: bool) -> None:
        self._asked.value = value

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.signal(each, self._hear) for each in self._signals}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)
        self._before = {}

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._heard:
            raise KeyboardInterrupt
        self._heard = self.asked = True
        if not self._quiet:
            os.write(
                2, b"torchcaps: stopping after this step; once more stops at once, unsaved\n"
            )  # print may be inside
