"""How much memory there is to take, where the system tells."""

from __future__ import annotations

import os
from contextlib import suppress
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
