"""Memory that tensors have given back stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from torchcaps.train.allocator import keep_freed_memory

RESIDENT = """
import sys, torch
from torchcaps.train.allocator import keep_freed_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
torch.ones(1)
if sys.argv[1] == "kept":
    assert keep_freed_memory()
before = resident()
torch.empty(30 * 2**20, dtype=torch.uint8).fill_(1)
print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's memory is managed")
def test_freed_memory_stays_with_the_process() -> None:
    """A tensor of 30 MiB that nobody holds any more: by default its pages are gone, and here they are not."""
    returned, kept = (
        int(subprocess.run([sys.executable, "-c", RESIDENT, how], capture_output=True, check=True).stdout)
        for how in ("returned", "kept")
    )
    assert returned < 5 * 2**20 and kept > 28 * 2**20


def test_it_is_left_alone_where_there_is_no_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is False
