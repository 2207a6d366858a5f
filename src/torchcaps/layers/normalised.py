"""Batch norm of poses: primary capsules that are normalised before the squash, and a transform whose votes are.

Zhao, Wang and Huang 2020, section 3.4 and Algorithm 2. Both have Keras' momentum and eps unless told otherwise.
"""

from __future__ import annotations

import math
from typing import NoReturn

from torch import Tensor, nn

from torchcaps.capsules import Capsules, lengths, squash
from torchcaps.layers.keras import EPS, MOMENTUM, SameConv2d
from torchcaps.layers.primary import count_capsules
from torchcaps.layers.transforms import LinearTransform
from torchcaps.names import check_choice, whole
from torchcaps.votes import Votes
from torchcaps.votes.normalised import NormalisedVotes, VoteNorm
from torchcaps.votes.protocol import Each


class NormalisedPrimary(nn.Module):
    """Convolution with 'same' padding, channels grouped into poses, batch norm of their elements, squash.

    Args:
        in_channels: of the features.
        capsules: types per position.
        pose: elements of a pose, side by side among the channels.
        positions: at which the capsules stand, height times width.
        kernel, stride: of the convolution, which has no bias.
        each: what has statistics of its own: a pose "element", or each (child, element) of each "child".
    """

    def __init__(
        self,
        in_channels: int,
        capsules: int,
        pose: int,
        positions: int,
        kernel: int = 5,
        stride: int = 2,
        each: str = "element",
    ):
        super().__init__()
        check_choice("each", each, ("element", "child"))
        in_channels, capsules, pose = count_capsules(in_channels, capsules, pose)
        positions = whole("positions", positions)
        self.pose, self.each = pose, each
        self.conv = SameConv2d(in_channels, capsules * pose, kernel, stride)
        self.norm = nn.BatchNorm1d(pose if each == "element" else positions * capsules * pose, EPS, MOMENTUM)

    def forward(self, features: Tensor) -> Capsules:
        """Map [b, c, h, w] -> poses [b, h', w', i, d] and activations [b, h', w', i], the lengths of the poses,
        below 1.
        """
        maps = self.conv(features).permute(0, 2, 3, 1)  # [b, h', w', (i d)]
        poses = maps.unflatten(-1, (-1, self.pose))
        normal = self.norm(poses.reshape(-1, self.pose) if self.each == "element" else maps.flatten(1))
        poses = squash(normal.reshape(poses.shape))
        return Capsules(poses, lengths(poses))


class NormalisedTransform(LinearTransform):
    """A linear transform whose votes pass a batch norm, for routings that have none of their own.

    Args:
        children, parents, child_pose, parent_pose, matrix, std: see `LinearTransform`.
        each: what has statistics of its own, see `VoteNorm`.
        momentum, eps: of the batch norm, as in `nn.BatchNorm1d`.
    """

    makes = None  # no kernel knows these votes

    def __init__(
        self,
        children: int,
        parents: int,
        child_pose: int,
        parent_pose: int,
        matrix: bool = False,
        std: float | None = None,
        each: Each = "element",
        momentum: float = MOMENTUM,
        eps: float = EPS,
    ):
        super().__init__(children, parents, child_pose, parent_pose, matrix, std)
        self.norm = VoteNorm(children, parents, parent_pose, each, momentum, eps)

    def scaled(self, coupling: Tensor) -> NoReturn:
        """Raise ValueError: the norm behind the weights would take out what they are multiplied by."""
        raise ValueError("votes that pass a batch norm cannot be scaled by their weights: nothing can be folded")

    def forward(self, children: Capsules) -> Votes:
        votes = super().forward(children)
        return NormalisedVotes(votes, *self.norm(votes))


def keeping_std(pose: int, matrix: bool) -> float:
    """Return the standard deviation of weights that leave each vote the size of its child, of `pose` elements."""
    return 1 / math.sqrt(math.isqrt(pose) if matrix else pose)
