"""What a routing may ask of the votes: a handful of sums, never the votes themselves."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from torchcaps.votes.binary import Threshold

Over = Literal["parents", "children"]
Scope = Literal["window", "image"]
Each = Literal["element", "child", "pair"]
Agreement = Literal["dot", "xnor", "xnor-midpoint"]
Share = Tensor | Literal["ones"] | None  # a coupling, 1 for each, or None: 1 / j, as where `Routing.couple` gives None


class Moments(NamedTuple):
    """Statistics of votes: [d], or by child [i, 1, d], or by child and parent [i, j, d]."""

    mean: Tensor
    variance: Tensor  # biased
    size: Tensor  # how many votes each was taken of; broadcasts to the mean


class Votes(Protocol):
    """Votes of children for parents, kept as children and transform; b batch, p position, i child, j parent, d pose.

    A position is one place of the parents (one in all for linear capsules), and i counts the children in its window.
    """

    children: int  # children per position, i
    parents: int  # parents per position, j
    pose: int  # elements of a parent's pose, d
    space: tuple[int, ...]  # (height, width) of the positions; () for linear capsules

    @property
    def activations(self) -> Tensor | None:
        """Return the activations of the children in their windows, [b, p, i], 0 outside the image; None if they have
        none.
        """
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of what `combine` gives: the type of autocast where it is on."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def images(self) -> int:
        """Return b, the number of images."""
        ...

    @property
    def present(self) -> Tensor | None:
        """Return [p, i], False where a window leaves the image; None when every child is there."""
        ...

    def dense(self) -> Tensor:
        """Return the votes themselves [b, p, i, j, d], 0 outside the image: for tests and for reading."""
        ...

    def combine(self, coupling: Share = "ones", scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Return sum_i c (scale v + shift), [b, p, j, d].

        `coupling` is [b, p, i, j], [b, p, i, 1], or [i, j] (folded into W); with a shift it must be 0 where a child is
        not present. None is the uniform one, 1 / j, as `Routing.couple` says it; "ones", or nothing, is 1.

        `scale` and `shift` broadcast to [b, p, j, d] or, here and below, to [b, p, i, j, d].
        """
        ...

    def agree(self, parents: Tensor, how: Agreement = "dot") -> Tensor:
        """Return sum_d v parent, [b, p, i, j], of `parents` [b | 1, p | 1, j, d]; "xnor" binarizes the votes first
        (XnIDR), "xnor-midpoint" by the middle between the smallest and the largest vote of each image, in place of 0.
        """
        ...

    def squares(self, coupling: Share, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Return sum_i c (scale v + shift)^2, [b, p, j, d], with `coupling`, `scale` and `shift` as for `combine`."""
        ...

    def distance(self, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Return sum_d (scale v + shift)^2, [b, p, i, j], with `scale` and `shift` as for `combine`."""
        ...

    def moments(self, each: Each = "element") -> Moments:
        """Return mean and variance of the votes that are present: of each pose element, of each (child, element), or of
        each (child, parent, element).
        """
        ...

    def binarized(self, threshold: Threshold = "zero") -> Votes:
        """Return the votes of the same children through the same weights, both xnorized first (XnODR): see
        `votes.binary`.
        """
        ...

    def compete(self, logits: Tensor | None, over: Over = "parents", scope: Scope = "window") -> Tensor:
        """Return the softmax of `logits` [b, p, i, j], 0 where a child is not present.

        Over "parents" a child shares itself among its parents: those at one position (scope "window"), or those of all
        windows that see it (scope "image"). Over "children" the children of a parent compete. `logits` None stands for
        equal ones, and gives what broadcasts to [1, p, i, 1].
        """
        ...
