"""The joint batch of several processes, with its gradient."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, own: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        world, rank = dist.get_world_size(), dist.get_rank()
        count = torch.tensor([len(own)], device=own.device)
        counts = [torch.empty_like(count) for _ in range(world)]
        dist.all_gather(counts, count)
        sizes = [int(each) for each in counts]
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        start = sum(sizes[:rank])
        ctx.rows, ctx.world = slice(start, start + len(own)), world
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.world * gradient[ctx.rows]


def gather_batch(own: Tensor) -> Tensor:
    """Return the rows [b, ...] of all processes, in the order of their ranks; `own` itself where there is one process.

    The gradient is for a loss that every process computes alike of the joint rows, and for gradients that are averaged
    over the processes afterwards, as DDP does: each process takes back its own rows times the number of processes, so
    that the average is the gradient of the loss. Shares may differ in size.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return own
    joint = _Gather.apply(own)
    assert isinstance(joint, Tensor)
    return joint
