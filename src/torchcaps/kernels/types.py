"""The type in which an operation answers where its inputs have several."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor


def widest(*tensors: Tensor, at_least: torch.dtype | None = None) -> torch.dtype:
    """Return the narrowest type that holds the numbers of all `tensors`, and those of `at_least`."""
    types = [x.dtype for x in tensors]
    return reduce(torch.promote_types, types if at_least is None else [*types, at_least])
