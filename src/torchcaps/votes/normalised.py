"""Batch norm of votes as a scale and a shift, which the sums over votes take in: no vote is ever made for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchcaps.names import check_choice
from torchcaps.votes.protocol import Each, Votes


class VoteNorm(nn.Module):
    """As `nn.BatchNorm1d` of the votes' elements, with its running statistics, gain and bias.

    Args:
        children, parents, pose: of the votes.
        each: what has statistics of its own: a pose "element", a (child, element), or a "pair" (child, parent,
            element). A child of a convolutional layer is a place in the window.
        momentum: share of a batch in the running statistics.
        eps: added to the variance, in squared pose units.

    Statistics of a single vote, such as a "pair" has in a linear layer for a batch of one, leave the bias of it.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(
        self, children: int, parents: int, pose: int, each: Each = "element", momentum: float = 0.1, eps: float = 1e-5
    ):
        super().__init__()
        check_choice("batch_norm", each, ("element", "child", "pair"))
        shape = {"element": (pose,), "child": (children, 1, pose), "pair": (children, parents, pose)}[each]
        self.each: Each = each
        self.momentum, self.eps = momentum, eps
        self.weight, self.bias = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.register_buffer("running_mean", torch.zeros(shape))
        self.register_buffer("running_variance", torch.ones(shape))

    def forward(self, votes: Votes) -> tuple[Tensor, Tensor]:
        """Scale and shift of the votes, [d], [1, 1, i, 1, d] or [1, 1, i, j, d].

        In training they are of this batch, whose statistics are added to the running ones; else of the running ones.
        """
        mean, variance = self._measured(votes) if self.training else (self.running_mean, self.running_variance)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return (scale, shift) if self.each == "element" else (scale[None, None], shift[None, None])

    def _measured(self, votes: Votes) -> tuple[Tensor, Tensor]:
        mean, variance, count = votes.moments(self.each)
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp_min(1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_variance.lerp_(unbiased.to(self.running_variance.dtype), self.momentum)
        return mean, variance

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, each={self.each!r}, momentum={self.momentum}, eps={self.eps}"
