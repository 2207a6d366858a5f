"""How processes keep out of each other's way: an empty file that one of them holds, on any system."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path


def hold(path: Path, seconds: float = 0) -> AbstractContextManager[object] | None:
    """Hold the lock file `path`, which is made where it is not there; None where a process holds it for `seconds` on.

    It is held until the context that is returned ends, or is forgotten, or the process ends, however it does: the
    system lets go of it.
    """
    from filelock import FileLock, Timeout

    try:
        return FileLock(path, thread_local=False).acquire(timeout=seconds)
    except Timeout:
        return None


def wait_for(path: Path) -> AbstractContextManager[object]:
    """Hold the lock file `path` while the context lasts; wait where another process holds it."""
    from filelock import FileLock

    return FileLock(path, thread_local=False)
