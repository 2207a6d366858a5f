"""The learnt transforms from children to votes: linear, and convolutional."""

from __future__ import annotations

import copy
import math
from typing import Self

import torch
from torch import Tensor, nn

from torchcaps.capsules import Capsules
from torchcaps.layers.coordinates import Coordinates, append_coordinates, coordinate_weights
from torchcaps.names import check_above, whole
from torchcaps.routing import Sizes
from torchcaps.votes import ConvVotes, LinearVotes, ScrambledVotes, SequenceVotes, Votes
from torchcaps.votes.children import check_capsules


def pose_shape(child_pose: int, parent_pose: int, matrix: bool) -> tuple[int, int, int]:
    """Return (rows, columns of a child's pose, columns of a vote), so that vote = pose W.

    A vector pose is one row. A matrix pose is square, and parent and child have equally many rows.

    Raises:
        ValueError: for sizes below 1 and for matrix poses that are not square.
    """
    child_pose, parent_pose = whole("child_pose", child_pose), whole("parent_pose", parent_pose)
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
        std: of the normal initial weights; None: sqrt(parents / (columns * children)) (as Tsai et al. 2020's code). Of
            independent children of unit variance parents then have the variance 1 / parents under uniform coupling.
        coordinates: add the place of a child to its votes, see `torchcaps.layers.coordinates`; True: `Coordinates()`.
        shared: children of the window that share each matrix; `window` then counts them once.

    `makes` names the class of the votes, by which fused steps are found; None: no kernel can know them.
    """

    makes: type[Votes] | None = None
    sizes: Sizes
    place: Tensor | None  # constant weights of the coordinates, which broadcast to [j, *window, extra, m]

    def __init__(
        self,
        window: tuple[int, ...],
        parents: int,
        child_pose: int,
        parent_pose: int,
        matrix: bool = False,
        std: float | None = None,
        coordinates: bool | Coordinates = False,
        shared: int = 1,
    ):
        super().__init__()
        window = tuple(whole("each of the window", each) for each in window)
        parents, parent_pose = whole("parents", parents), whole("parent_pose", parent_pose)
        if std is not None:
            check_above("std", std, equal=True)
        self.rows, columns, out = pose_shape(child_pose, parent_pose, matrix)
        self.shared = shared
        self.sizes = Sizes(math.prod(window) * shared, parents, parent_pose)
        self.start, self.scale = coordinates if isinstance(coordinates, Coordinates) else Coordinates()
        self.register_buffer("place", coordinate_weights(self.rows, out, self.scale) if coordinates else None)
        self.shape = (parents, *window, columns, out)
        self.weight = nn.Parameter(torch.empty(self.shape))
        self.std = std if std is not None else math.sqrt(parents / (columns * self.sizes.children))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)
        if self.place is not None:
            self.place.copy_(coordinate_weights(self.rows, self.shape[-1], self.scale))

    def forward(self, children: Capsules) -> Votes:
        """Return the votes of `children`.

        Raises:
            TypeError: when they are no `Capsules`.
            ValueError: when they are not what the weights take, or their activations not one a capsule.
        """
        check_capsules(children)
        return self.vote(children, self.weight)

    def vote(self, children: Capsules, weight: Tensor, binary: bool = False) -> Votes:
        """Return the votes of `children` through `weight`, of the shape of this transform's own; `binary` says that
        both are xnorized.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method vote(children, weight, binary)")

    def seen(self, children: Capsules) -> Capsules:
        """Return which of `children`, or what of them, votes: signs are taken of these."""
        return children

    def inputs(self, children: Capsules, weight: Tensor) -> tuple[Capsules, Tensor]:
        """Return what votes are made of: children with their coordinates, and W for each of them, [j, *window,
        columns, m].
        """
        weight = self._unshared(weight)
        if self.place is None:
            return children, weight
        if children.poses.shape[-1] != self.rows * self.shape[-2]:
            raise ValueError(
                f"the children are capsules of {children.poses.shape[-1]}, but the transform takes those of "
                f"{self.rows * self.shape[-2]}"
            )
        place = self.place.to(weight.dtype).expand(*weight.shape[:-2], -1, -1)
        return append_coordinates(children, self.rows, self.start), torch.cat((weight, place), -2)

    def scaled(self, coupling: Tensor) -> Self:
        """Return a copy whose votes are `coupling` [i, j] times those of this transform; no children share matrices
        there.

        Its weights lie in memory as one matrix [(i c), (j m)], so that their sum over all children copies nothing.
        """
        other, weight = copy.deepcopy(self), self._unshared(self.weight.detach())
        factor = coupling.T.reshape(weight.shape[:-2])[..., None, None]
        matrix = (weight * factor).movedim(0, -2).contiguous()  # [*window, c, j, m]
        other.shared, other.shape, other.weight = 1, tuple(weight.shape), nn.Parameter(matrix.movedim(-2, 0))
        other.weight.requires_grad_(self.weight.requires_grad)
        if self.place is not None:
            other.place = self.place * factor
        return other

    def _unshared(self, weight: Tensor) -> Tensor:
        """Return [j, types, columns, m] for each child, (type, position); [j, *window, columns, m] as it is."""
        if self.shared == 1:
            return weight
        return weight.unsqueeze(2).expand(-1, -1, self.shared, -1, -1).flatten(1, 2)

    def extra_repr(self) -> str:
        j, *window, columns, out = self.shape
        shared = f", shared by {self.shared}" if self.shared > 1 else ""
        place = "" if self.place is None else ", coordinates"
        return f"{tuple(window)} capsules of {self.rows}x{columns} -> {j} of {self.rows}x{out}{shared}{place}"


class LinearTransform(Transform):
    """Every child votes for every parent. Children with positions are flattened as (capsule, height, width).

    Args:
        children: capsules in all, positions included.
        parents, child_pose, parent_pose, matrix, std, coordinates: see `Transform`.
        shared: positions that share their transforms, as in the class layer of Hinton et al. 2018 (section 4): height
            times width of the children, or 1. There are then children / shared matrices for each parent.

    Raises:
        ValueError: when `shared` does not divide the children; at a call, when they have another number of positions.
    """

    makes = LinearVotes

    def __init__(
        self,
        children: int,
        parents: int,
        child_pose: int,
        parent_pose: int,
        matrix: bool = False,
        std: float | None = None,
        coordinates: bool | Coordinates = False,
        shared: int = 1,
    ):
        children, shared = whole("children", children), whole("shared", shared)
        if children % shared:
            raise ValueError(f"{children} children cannot stand at {shared} positions that share their transforms")
        window = (children // shared,)
        super().__init__(window, parents, child_pose, parent_pose, matrix, std, coordinates, shared)

    def vote(self, children: Capsules, weight: Tensor, binary: bool = False) -> LinearVotes:
        poses = children.poses
        space = poses.shape[1:-2]
        if self.shared > 1 and space and space.numel() != self.shared:
            places = "x".join(map(str, space))
            raise ValueError(f"the children stand at {places} positions, but {self.shared} share transforms")
        children, weight = self.inputs(children, weight)
        return LinearVotes(flatten_space(children), weight, self.rows, binary)


class PooledTransform(LinearTransform):
    """A linear transform of the mean over all positions: one vote of each type of child, whatever the image's size.

    Args:
        children: types of capsules at a position.
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
        super().__init__(children, parents, child_pose, parent_pose, matrix, std)

    def seen(self, children: Capsules) -> Capsules:
        """Return each type's mean over the positions; children without positions are taken as they are. A type's
        activation is the mean of its children's.
        """
        poses, activations = children
        if space := tuple(range(1, poses.ndim - 2)):
            poses = poses.mean(space)
            activations = None if activations is None else activations.mean(space)
        return Capsules(poses, activations)

    def vote(self, children: Capsules, weight: Tensor, binary: bool = False) -> LinearVotes:
        """Return the votes of what is seen."""
        return super().vote(self.seen(children), weight, binary)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, of the mean over positions"


class ConvTransform(Transform):
    """The same transforms at every position, from the children in its window: of images, or of signals and sequences.

    Args:
        children: capsules per position.
        parents: capsules per position.
        child_pose, parent_pose: elements of a pose.
        kernel, stride, padding: of the window, in positions; kernel and stride at least 1.
        matrix, std, coordinates: see `Transform`.
        scrambled: read poses across positions, as the released code of inverted attention does: see
            `torchcaps.votes.scrambled`. Its steps are plain.
        dims: 2, children [b, h, w, i, d] and square windows; or 1, children [b, t, i, d] and windows along t, whose
            steps are plain.

    Raises:
        ValueError: for sizes below 1, other dims, scrambled windows along one dimension, and for padding or coordinates
            of scrambled windows, which have none.
    """

    makes = ConvVotes

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
        coordinates: bool | Coordinates = False,
        scrambled: bool = False,
        dims: int = 2,
    ):
        children, kernel, stride = whole("children", children), whole("kernel", kernel), whole("stride", stride)
        padding = whole("padding", padding, 0)
        if dims not in (1, 2) or (dims == 1 and scrambled):
            raise ValueError(
                f"dims is {dims} and scrambled {scrambled}; windows have 1 or 2 dimensions, scrambled ones 2"
            )
        if scrambled and (padding > 0 or coordinates):
            raise ValueError(
                f"padding is {padding} and coordinates {coordinates}, but windows are scrambled: what is mixed over "
                "positions stands at none of them; take padding 0 and no coordinates"
            )
        window = kernel if dims == 2 else 1, kernel, children
        super().__init__(window, parents, child_pose, parent_pose, matrix, std, coordinates)
        self.stride, self.padding, self.scrambled, self.dims = stride, padding, scrambled, dims
        if scrambled or dims == 1:
            self.makes = ScrambledVotes if scrambled else SequenceVotes

    def vote(self, children: Capsules, weight: Tensor, binary: bool = False) -> ConvVotes:
        if children.poses.ndim != 3 + self.dims:
            form = "[b, h, w, i, d]" if self.dims == 2 else "[b, t, i, d]"
            raise ValueError(
                f"convolutional capsules need children with positions {form}, not {list(children.poses.shape)}"
            )
        if self.dims == 1:
            poses, active = children
            children = Capsules(poses.unsqueeze(1), None if active is None else active.unsqueeze(1))
            return SequenceVotes(*self.inputs(children, weight), self.rows, self.stride, self.padding, binary)
        if self.scrambled:
            return ScrambledVotes(children, weight, self.rows, self.stride)
        return ConvVotes(*self.inputs(children, weight), self.rows, self.stride, self.padding, binary)

    def extra_repr(self) -> str:
        others = {
            f"stride {self.stride}": self.stride != 1,
            f"padding {self.padding}": self.padding != 0,
            "scrambled": self.scrambled,
            "along one": self.dims == 1,
        }
        return ", ".join([super().extra_repr(), *(said for said, holds in others.items() if holds)])


def flatten_space(capsules: Capsules) -> Capsules:
    """Map [b, h, w, i, d] -> [b, (i h w), d], [b, t, i, d] -> [b, (i t), d]; those without positions stay as they
    are.
    """
    poses, activations = capsules
    if poses.ndim == 3:
        return capsules
    if poses.ndim == 4:
        along = None if activations is None else activations.transpose(1, 2).flatten(1)
        return Capsules(poses.transpose(1, 2).flatten(1, 2), along)
    flat = activations if activations is None else _capsules_first(activations).flatten(1)
    return Capsules(_capsules_first(poses.movedim(-1, 0)).flatten(2).movedim(0, -1), flat)


def _capsules_first(x: Tensor) -> Tensor:
    """Return [..., h, w, i] -> [..., i, h, w]."""
    return x.movedim(-1, -3)
