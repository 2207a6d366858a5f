"""`torch.compile` of what a training step computes, where the machine can do it."""

from __future__ import annotations

import torch
from lightning_fabric.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from torchcaps.terminal import warn


def compile_module(module: nn.Module, device: torch.device) -> bool:
    """Let calls of `module`, which is on `device`, run as compiled code; whether they will.

    It is compiled in place, so its weights keep their names. Where the machine lacks what compiling takes, such as a
    C++ compiler or Triton, a warning of one line says so, and the module stays as it is.
    """
    if reason := obstacle(device):
        _warn(reason)
        return False
    module.compile()
    return True


def obstacle(device: torch.device) -> str:
    """Return why nothing can be compiled for `device`, found by compiling something small; empty where it can be."""
    try:
        torch.compile(_doubled)(torch.ones(2, device=device))
    except Exception as error:  # which one it is depends on the compiler that is missing, and on torch's version
        return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ""


def _doubled(values: Tensor) -> Tensor:
    return 2 * values


@rank_zero_only
def _warn(reason: str) -> None:
    warn(f"compile is on, but this machine cannot: {reason}; not compiled")
