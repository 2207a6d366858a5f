"""Numbers on their way from the device to the host, which wait for nothing that the device was given after them."""

from __future__ import annotations

import torch
from torch import Tensor


class Readback:
    """A copy of `values`, begun when it is made; `tolist` waits for it alone.

    A plain `values.tolist()` would be queued behind all that was launched since, and drain the device.
    """

    def __init__(self, values: Tensor):
        self._done = None
        self._values = values
        if values.device.type == "cuda":
            self._values = pinned_like(values)
            self._values.copy_(values, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(values.device))

    def tolist(self) -> list:
        """Return the numbers, as `Tensor.tolist` gives them."""
        if self._done is not None:
            self._done.synchronize()
        return self._values.tolist()


def pinned_like(values: Tensor) -> Tensor:
    """Return memory of the host that the device writes to by itself, for as many numbers as `values` has."""
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
