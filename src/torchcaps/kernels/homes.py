"""What an operation's home, its module for a device, is called in, and what it must give."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def home_in(operation: str) -> Callable[[Tensor], Any]:
    """Return a function that gives, for a tensor, the module of `operation` for its device: `forward` and `backward`.

    The module imports numba or Triton, and is imported on first use.

    Args:
        operation: a folder of `torchcaps.kernels`, such as "dynamic".
    """

    def home(x: Tensor) -> Any:
        return import_module(f"torchcaps.kernels.{operation}.{'cpu' if x.device.type == 'cpu' else 'cuda'}")

    return home


def call_at(x: Tensor, function: Callable[..., T], *inputs: object) -> T:
    """Return `function(*inputs)`, called on the device of `x` and without autocast.

    Triton launches on the current device, whichever its tensors are on; and autocast, which is still on inside an
    operation, would have products of a home in half precision, whose sums of squares overflow.
    """
    kind = x.device.type
    if kind == "cpu" and not torch.is_autocast_enabled(kind):
        return function(*inputs)
    with torch.autocast(kind, enabled=False), torch.cuda.device_of(x):
        return function(*inputs)


def none_yet(*inputs: Tensor | None) -> Any:
    """Return the gradients of a batch without images as a tuple: zeros, and an empty one for what is None."""
    like = next(x for x in inputs if x is not None)
    return tuple(like.new_empty(0) if x is None else x.new_zeros(x.shape) for x in inputs)


def as_promised(found: Tensor, like: Tensor) -> Tensor:
    """Return a gradient in the type of its input and contiguous, as its fake says: compiled code goes by strides."""
    return found.to(like.dtype).contiguous()
