"""Batch norm of votes as a scale and a shift, which the sums over votes take in: no vote is ever made for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from torchcaps.names import check_above, check_choice
from torchcaps.votes.binary import Threshold
from torchcaps.votes.protocol import Agreement, Each, Moments, Over, Scope, Share, Votes


@contextmanager
def asking_for_eval() -> Iterator[None]:
    """Say what to do instead where running statistics are added to under a transform of torch.func."""
    try:
        yield
    except RuntimeError as error:
        if not torch._C._are_functorch_transforms_active():
            raise
        raise RuntimeError(
            "batch norm cannot add to its running statistics under a transform of torch.func: call eval() first, or "
            "hand its buffers to the transformed function and on to torch.func.functional_call"
        ) from error


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
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum of the batch norm is {momentum}; it must be in [0, 1]")
        check_above("eps of the batch norm", eps)
        shape = {"element": (pose,), "child": (children, 1, pose), "pair": (children, parents, pose)}[each]
        self.each: Each = each
        self.momentum, self.eps = momentum, eps
        self.weight, self.bias = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.register_buffer("running_mean", torch.zeros(shape))
        self.register_buffer("running_variance", torch.ones(shape))

    def forward(self, votes: Votes) -> tuple[Tensor, Tensor]:
        """Return scale and shift of the votes, both [d], [1, 1, i, 1, d] or [1, 1, i, j, d].

        In training they are of this batch, whose statistics are added to the running ones; else of the running ones.
        """
        return self.affine(votes.moments, votes.images)

    def affine(self, moments: Callable[[Each], Moments], images: int) -> tuple[Tensor, Tensor]:
        """Return scale and shift as `forward` does, of votes of `images` images whose moments `moments` computes; it is
        called in training alone.
        """
        measured = self.training and images > 0  # none have no moments, and change nothing
        mean, variance = self._measured(moments) if measured else (self.running_mean, self.running_variance)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return (scale, shift) if self.each == "element" else (scale[None, None], shift[None, None])

    def _measured(self, moments: Callable[[Each], Moments]) -> tuple[Tensor, Tensor]:
        mean, variance, count = moments(self.each)
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp_min(1)
            self._remember(mean, unbiased)
        return mean, variance

    def _remember(self, mean: Tensor, unbiased: Tensor) -> None:
        """Add the statistics of a batch to the running ones."""
        with asking_for_eval():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_variance.lerp_(unbiased.to(self.running_variance.dtype), self.momentum)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, each={self.each!r}, momentum={self.momentum}, eps={self.eps}"


class NormalisedVotes:
    """`scale` times `votes` plus `shift`, as `VoteNorm` gives them, for routings without batch norm. See `Votes`.

    Where each child has a scale and shift of its own, what a routing adds to them is as large as the votes.

    Args:
        votes: of any kind that is not itself normalised.
        scale, shift: [d], [1, 1, i, 1, d] or [1, 1, i, j, d].
    """

    def __init__(self, votes: Votes, scale: Tensor, shift: Tensor):
        self.votes, self.scale, self.shift = votes, scale, shift
        self.children, self.parents, self.pose, self.space = votes.children, votes.parents, votes.pose, votes.space

    @property
    def activations(self) -> Tensor | None:
        return self.votes.activations

    @property
    def dtype(self) -> torch.dtype:
        return self.votes.dtype

    @property
    def device(self) -> torch.device:
        return self.votes.device

    @property
    def images(self) -> int:
        return self.votes.images

    @property
    def present(self) -> Tensor | None:
        return self.votes.present

    def dense(self) -> Tensor:
        dense = self.votes.dense() * self.scale + self.shift
        return dense if self.present is None else dense * self.present[None, :, :, None, None]

    def combine(self, coupling: Share = "ones", scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return self.votes.combine(coupling, *self._affine(scale, shift)).to(self.dtype)

    def agree(self, parents: Tensor, how: Agreement = "dot") -> Tensor:
        """Return sum_d v parent; of a scale and shift of each child a quarter of |v + parent|^2 - |v - parent|^2."""
        if how != "dot":
            raise ValueError(f"batch norm of votes and agreement {how!r} do not go together: leave batch norm out")
        if self.scale.ndim == 1:
            shifted = (parents * self.shift).sum(-1).unsqueeze(2)  # [b, p, 1, j]
            logits = self.votes.agree(parents * self.scale) + shifted
        else:
            parents = parents.unsqueeze(2)  # [b, p, 1, j, d]
            both = (self.votes.distance(self.scale, self.shift + each) for each in (parents, -parents))
            logits = (next(both) - next(both)) / 4
        return logits if self.present is None else logits * self.present[None, :, :, None]

    def squares(self, coupling: Share, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return self.votes.squares(coupling, *self._affine(scale, shift))

    def distance(self, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        return self.votes.distance(*self._affine(scale, shift))

    def moments(self, each: Each = "element") -> Moments:
        raise ValueError("these votes have passed a batch norm, and take no second one: leave one of the two out")

    def binarized(self, threshold: Threshold = "zero") -> Votes:
        raise ValueError("batch norm of votes and binary votes do not go together: leave batch norm out")

    def compete(self, logits: Tensor | None, over: Over = "parents", scope: Scope = "window") -> Tensor:
        return self.votes.compete(logits, over, scope)

    def _affine(self, scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the scale and shift of the votes below that a further `scale` and `shift` make."""
        scale, shift = (self._expand(x) for x in (scale, shift))
        inner = self.shift if scale is None else self.shift * scale
        return self.scale if scale is None else self.scale * scale, inner if shift is None else inner + shift

    def _expand(self, x: Tensor | None) -> Tensor | None:
        """Return `x`, which broadcasts to [b, p, j, d], with a dimension for the children where the scale has one."""
        if x is None or self.scale.ndim == 1 or x.ndim == 5:
            return x
        return x[(None,) * (4 - x.ndim)].unsqueeze(2)
