"""Memory that tensors have given back stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from torchcaps.train.allocator import keep_freed_memory

FAULTS = """
import resource, torch
from torchcaps.train.allocator import keep_freed_memory
assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def layers():
    return [torch.empty(30 * 2**20, dtype=torch.uint8).fill_(1) for _ in range(8)]
for _ in range(2):
    layers()
before = faults()
for _ in range(5):
    layers()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's memory is managed")
def test_freed_memory_is_not_taken_anew() -> None:
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, check=True)
    assert int(run.stdout) < 20_000  # anew, five times 240 MiB are 307,200 pages


def test_it_is_left_alone_where_there_is_no_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert keep_freed_memory() is False
