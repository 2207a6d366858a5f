"""What all tests share: where programs lie, one core for each process beside others, CUDA interpreted where no GPU is.

Triton decides when it is first imported whether its kernels run in its interpreter.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, too

import pytest
import torch

SLOW = 1800  # seconds after which a slow test is given up; others have the limit of pyproject.toml

# The programs of these folders are run as files, and import each other by name; so do the tests of them.
sys.path.extend(str(Path(__file__).parent.parent / folder) for folder in ("benchmarks", "docs"))
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests, which start many processes, time on a busy machine too."""
    for item in items:
        if item.get_closest_marker("slow") is not None and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SLOW))
