"""Numbers so near to 0 that a processor takes many times as long with them."""

from __future__ import annotations

import torch
from torch import nn

SMALLEST = torch.finfo(torch.float32).tiny  # normal number of float32


@torch.no_grad()
def drop_denormals(model: nn.Module) -> None:
    """Set to 0 what is nearer to it than `SMALLEST`, for which a processor takes many times as long: a run that flushes
    none leaves them where weight decay alone moves a weight. In float64 they are numbers like others.
    """
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.dtype != torch.float64:
            tensor[tensor.abs() < SMALLEST] = 0
