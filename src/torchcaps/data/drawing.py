"""What a user's own code draws from the generators that all share: it depends on a key, and they stay as they were.

Without that an image would depend on what else was drawn before it, by a dropout, another image or the caller, and a
run that goes on would see other images than one that was never cut.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def generators_kept() -> Iterator[None]:
    """Put the generators of torch (on the CPU), NumPy and Python back as they were, however the context ends."""
    python, numpy, ours = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(ours)
        np.random.set_state(numpy)
        random.setstate(python)


def seed_generators(seed: np.random.SeedSequence) -> None:
    """Set the generators of torch (on the CPU), NumPy and Python to begin at `seed`."""
    word = int(seed.generate_state(1)[0])
    torch.default_generator.manual_seed(word)
    np.random.seed(word)
    random.seed(word)
