"""Gradients that can be differentiated again, or taken of many vectors at once: those of an operation's plain form.

The backward operation of a fused step has no derivative of its own and no rule for `vmap`. Where either is asked for,
the plain form is computed anew and differentiated in its place, at its cost in time and memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchcaps.capsules import no_autocast, transformed


def asked_again() -> bool:
    """Return whether the backward pass that runs now must itself be differentiable, or is taken under `vmap`."""
    return torch.is_grad_enabled() or transformed()


def gradients_anew(
    plain: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[object], upstream: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Return the gradients of `plain(*inputs)` for each input; None for what needs none.

    Args:
        plain: the operation in terms of torch's own.
        inputs: that the operation took: tensors, None and constants. Those that depend on each other do so outside:
            each gradient is of the operation alone.
        upstream: gradients of what `plain` returns.
    """
    again = torch.is_grad_enabled()
    first = next(x for x in inputs if isinstance(x, Tensor))
    with torch.enable_grad(), no_autocast(first):  # as the operation itself computes
        own = [x.view_as(x) if isinstance(x, Tensor) and x.requires_grad else x for x in inputs]
        outs = plain(*own)
        pairs = zip((outs,) if isinstance(outs, Tensor) else outs, upstream, strict=True)
        used = [(out, each) for out, each in pairs if each is not None and out.requires_grad]
        leaves = [x for x in own if isinstance(x, Tensor) and x.requires_grad]
        ends, given = zip(*used, strict=True)
        found = iter(torch.autograd.grad(ends, leaves, given, create_graph=again, allow_unused=True))
    return [next(found) if isinstance(x, Tensor) and x.requires_grad else None for x in own]
