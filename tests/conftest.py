"""What all tests share: where they run side by side, each process takes one core."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, too

    import torch

    torch.set_num_threads(1)
