"""Tensors on their way to the device that a batch is on."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(x: Tensor, device: torch.device | str) -> Tensor:
    """Return `x` on `device`; a CUDA device is not waited for.

    An Apple GPU is: torch before 2.13 may free the memory of a passing `x` before it has been copied there.
    """
    return x.to(device, non_blocking=torch.device(device).type == "cuda")
