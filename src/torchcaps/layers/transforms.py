"""The learnt transforms from children to votes: linear, and convolutional."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from torchcaps.capsules import Capsules
from torchcaps.routing import Sizes
from torchcaps.votes import ConvVotes, LinearVotes, Votes


def pose_shape(child_pose: int, parent_pose: int, matrix: bool) -> tuple[int, int, int]:
    """Rows and columns of a child's pose and columns of a vote, so that vote = pose W.

    A vector pose is one row. A matrix pose is square, and parent and child have equally many rows.

    Raises:
        ValueError: for sizes below 1 and for matrix poses that are not square.
    """
    if min(child_pose, parent_pose) < 1:
        raise ValueError(f"poses of {child_pose} and {parent_pose} elements were asked for; at least 1 is needed")
    if not matrix:
        return 1, child_pose, parent_pose
    rows = math.isqrt(child_pose)
    if rows * rows != child_pose or parent_pose % rows:
        raise ValueError(
            f"matrix poses of {child_pose} -> {parent_pose} elements do not fit: a child's must be square "
            f"(4, 9, 16, 25, ...), a parent's a multiple of its {max(rows, 1)} rows"
        )
    return rows, rows, parent_pose // rows


class Transform(nn.Module):
    """One matrix per child and parent, kept parents first.

    Args:
        window: children that vote for one parent, as (kernel height, kernel width, capsules) or (capsules,).
        parents: capsules per position.
        child_pose, parent_pose: elements of a pose.
        matrix: whether a pose is a square matrix (vote = pose W) or a vector.
        std: of the normal initial weights; None keeps the size of poses under uniform coupling, for children of unit
            variance: sqrt(parents / (columns * children)) (as Tsai et al. 2020's code).
    """

    sizes: Sizes

    def __init__(
        self,
        window: tuple[int, ...],
        parents: int,
        child_pose: int,
        parent_pose: int,
        matrix: bool = False,
        std: float | None = None,
    ):
        super().__init__()
        if min(*window, parents) < 1:
            raise ValueError(f"a window of {window} children and {parents} parents were asked for; each must be >= 1")
        self.rows, columns, out = pose_shape(child_pose, parent_pose, matrix)
        self.sizes = Sizes(math.prod(window), parents, parent_pose)
        self.weight = nn.Parameter(torch.empty(parents, *window, columns, out))
        self.std = std if std is not None else math.sqrt(parents / (columns * self.sizes.children))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)

    def forward(self, children: Capsules) -> Votes:
        raise NotImplementedError

    def extra_repr(self) -> str:
        j, *window, columns, out = self.weight.shape
        return f"{tuple(window)} capsules of {self.rows}x{columns} -> {j} of {self.rows}x{out}"


class LinearTransform(Transform):
    """Every child votes for every parent. Children with positions are flattened as (capsule, height, width).

    Args:
        children: capsules in all, positions included.
        parents, child_pose, parent_pose, matrix, std: see `Transform`.
    """

    def __init__(
        self,
        children: int,
        parents: int,
        child_pose: int,
        parent_pose: int,
        matrix: bool = False,
        std: float | None = None,
    ):
        super().__init__((children,), parents, child_pose, parent_pose, matrix, std)

    def forward(self, children: Capsules) -> LinearVotes:
        return LinearVotes(flatten_space(children), self.weight, self.rows)


class ConvTransform(Transform):
    """The same transforms at every position, from the children in its window.

    Args:
        children: capsules per position.
        parents: capsules per position.
        child_pose, parent_pose: elements of a pose.
        kernel, stride, padding: of the window, in positions; kernel and stride at least 1.
        matrix, std: see `Transform`.
    """

    def __init__(
        self,
        children: int,
        parents: int,
        child_pose: int,
        parent_pose: int,
        kernel: int = 3,
        stride: int = 1,
        padding: int = 0,
        matrix: bool = False,
        std: float | None = None,
    ):
        if stride < 1 or padding < 0:
            raise ValueError(f"stride is {stride} and padding {padding}; they must be at least 1 and 0")
        super().__init__((kernel, kernel, children), parents, child_pose, parent_pose, matrix, std)
        self.stride, self.padding = stride, padding

    def forward(self, children: Capsules) -> ConvVotes:
        if children.poses.ndim != 5:
            raise ValueError(
                f"convolutional capsules need children with positions [b, h, w, i, d], not {list(children.poses.shape)}"
            )
        return ConvVotes(children, self.weight, self.rows, self.stride, self.padding)


def flatten_space(capsules: Capsules) -> Capsules:
    """[b, h, w, i, d] -> [b, (i h w), d]; capsules without positions stay as they are."""
    poses, activations = capsules
    if poses.ndim == 3:
        return capsules
    flat = activations if activations is None else _capsules_first(activations).flatten(1)
    return Capsules(_capsules_first(poses.movedim(-1, 0)).flatten(2).movedim(0, -1), flat)


def _capsules_first(x: Tensor) -> Tensor:
    """[..., h, w, i] -> [..., i, h, w]."""
    return x.movedim(-1, -3)
