"""What a routing may ask of the votes: a handful of sums, never the votes themselves."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

Over = Literal["parents", "children"]
Scope = Literal["window", "image"]


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
        """Activations of the children in their windows [b, p, i], 0 outside the image; None if they have none."""
        ...

    @property
    def present(self) -> Tensor | None:
        """[p, i], False where a window leaves the image; None when every child is there."""
        ...

    def dense(self) -> Tensor:
        """The votes themselves [b, p, i, j, d], 0 outside the image: for tests and for reading."""
        ...

    def combine(self, coupling: Tensor | None = None) -> Tensor:
        """sum_i c v, [b, p, j, d]. `coupling` is [b, p, i, j], [b, p, i, 1], [i, j] (folded into W), or None for 1."""
        ...

    def agree(self, parents: Tensor, how: Literal["dot", "xnor"] = "dot") -> Tensor:
        """sum_d v parent, [b, p, i, j], of `parents` [b, p, j, d]; "xnor" binarizes the votes first (XnIDR)."""
        ...

    def spread(self, coupling: Tensor | None, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """sum_i c (scale v + shift)^2, [b, p, j, d]; `scale` and `shift` broadcast to [b, p, j, d]."""
        ...

    def distance(self, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """sum_d (scale v + shift)^2, [b, p, i, j]; `scale` and `shift` broadcast to [b, p, j, d]."""
        ...

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each pose element over all votes that are present, both [d]."""
        ...

    def compete(self, logits: Tensor | None, over: Over = "parents", scope: Scope = "window") -> Tensor:
        """Softmax of `logits` [b, p, i, j], 0 where a child is not present.

        Over "parents" a child shares itself among its parents: those at one position (scope "window"), or those of all
        windows that see it (scope "image"). Over "children" the children of a parent compete. `logits` None stands for
        equal ones, and gives what broadcasts to [1, p, i, 1].
        """
        ...
