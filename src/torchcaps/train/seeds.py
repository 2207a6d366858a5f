"""Random numbers: a run draws its own, and leaves those of the program that calls it as they were."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from torchcaps.data.drawing import generators_kept

_TOLD = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")  # where Fabric leaves a seed for whatever of Lightning follows


@contextmanager
def seeds_kept(device: torch.device) -> Iterator[None]:
    """Put the generators of Python, NumPy and torch back afterwards, and the seed that Fabric tells of.

    Else a search that draws its next rate after each `fit` would draw the same one for ever. Those of GPUs are put back
    where the program has used one, or the run does.
    """
    told = {name: os.environ.get(name) for name in _TOLD}
    used = device.type == "cuda" or torch.cuda.is_initialized()
    apple = torch.mps.get_rng_state() if device.type == "mps" else None
    try:
        gpus = range(torch.cuda.device_count()) if used else []  # a seed goes to all of them
        with generators_kept(), torch.random.fork_rng(gpus):
            yield
    finally:
        if apple is not None:
            torch.mps.set_rng_state(apple)
        for name, value in told.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
