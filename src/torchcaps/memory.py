"""How much memory there is to take, where the system tells; and what a run does with what it has taken."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def free_memory(device: torch.device | str = "cpu") -> int | None:
    """Return the bytes that a process may take on `device`: of a GPU all that it has; None where no system tells."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.get_device_properties(device).total_memory
    limits = [_available(), *(_read_number(Path(path)) for path in CGROUPS), _limit()]
    return min((limit for limit in limits if limit), default=None)


def _available() -> int | None:
    """Return what is free, or would be freed, where the system tells (Linux); else all that is built in (macOS)."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable"):
                return 1024 * int(line.split()[1])
    with suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _read_number(path: Path) -> int | None:
    """Return the limit of a container."""
    with suppress(OSError, ValueError):
        return int(path.read_text(encoding="ascii"))
    return None


def _limit() -> int | None:
    """Return the limit of a process (ulimit -v)."""
    try:
        import resource
    except ImportError:  # on Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


# Of glibc's malloc.h, and what it comes to by itself once large blocks have been freed.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_USUAL = ((_MMAP_MAX, 65536), (_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 64 << 20))


@contextmanager
def kept(device: torch.device | str) -> Iterator[None]:
    """Keep within it what is freed, to be given out again, where a step runs on the CPU of a system with glibc.

    Usually large blocks go back to the system and are cleared by it when they are asked for again, page by page: up to
    a quarter of a training step. What was kept goes back at the end. An environment with settings of its own for the
    allocator, GLIBC_TUNABLES or MALLOC_..., is left as it is: `MALLOC_MMAP_MAX_=65536` turns this off.
    """
    library = _glibc() if str(device).startswith("cpu") and not _is_set() else None
    if library is None:
        yield
        return
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        for option, value in _USUAL:
            library.mallopt(option, value)
        library.malloc_trim(0)


def _is_set() -> bool:
    """Return whether the environment says how memory is to be given out."""
    return any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)


def _glibc() -> ctypes.CDLL | None:
    """Return the library of this process; None where it is another one."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
