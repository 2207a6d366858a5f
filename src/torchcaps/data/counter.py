"""Random numbers that are a function of a key and a counter, in whole-number arithmetic: the same on every device.

Number i of key s is output i of SplitMix64 seeded with s (Steele, Lea and Flood 2014; the constants are those of
Vigna's public reference): any of them is computed alone, in any order. int64 overflows as two's complement on CPU and
CUDA alike, so the 64 bits are those of the unsigned original.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def signed(number: int) -> int:
    """Return the int64 with the low 64 bits of `number`."""
    return (number + 2**63) % 2**64 - 2**63


GAMMA = signed(0x9E3779B97F4A7C15)
FIRST, SECOND = signed(0xBF58476D1CE4E5B9), signed(0x94D049BB133111EB)


def make_key(seed: np.random.SeedSequence) -> int:
    """Return a key, as an int64."""
    return signed(int(seed.generate_state(1, np.uint64)[0]))


def bits(key: int, counter: Tensor) -> Tensor:
    """Return 64 random bits for each `counter` int64 of any shape, as int64."""
    z = (counter + 1) * GAMMA + key
    z = (z ^ _right(z, 30)) * FIRST
    z = (z ^ _right(z, 27)) * SECOND
    return z ^ _right(z, 31)


def below(random: Tensor, limit: int | Tensor) -> Tensor:
    """Return whole numbers in 0 .. limit - 1 from random `bits`; `limit` is at most 2^31.

    The upper half of the bits as a fraction, times `limit`: uneven by less than limit / 2^32.
    """
    return (_right(random, 32) * limit) >> 32


def unit(random: Tensor) -> Tensor:
    """Return float64 numbers in [0, 1), of 32 bits: exact on every device.

    They are on the CPU where `random` is on an Apple GPU, which has no float64.
    """
    upper = _right(random, 32)
    return (upper.cpu() if upper.device.type == "mps" else upper).double() / 2**32


def _right(z: Tensor, by: int) -> Tensor:
    """Return the numbers shifted to the right, zeros entering: torch's shift copies the sign."""
    return torch.bitwise_and(z >> by, (1 << (64 - by)) - 1)
