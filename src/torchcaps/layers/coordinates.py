"""Coordinate addition (Hinton, Sabour and Frosst 2018, section 4): a vote is told where its child stands.

The paper adds the scaled row and column of the child to the first two elements of the right-hand column of its vote.
Here a pose carries them in columns of its own, whose weights are constants: the votes stay affine.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torchcaps.capsules import Capsules


class Coordinates(NamedTuple):
    """What a vote is told of row or column i of n: scale (i + start) / n."""

    start: float = 0.5  #: 0.5: the middle of a place, as a share of the height or width
    scale: float = 1.0


def coordinate_weights(rows: int, columns: int, scale: float = 1.0) -> Tensor:
    """Return the constant rows that W gets, [extra, columns], for votes of `rows` x `columns`: `scale`, and zeros.

    One for a matrix vote, into its last column; two for a vector vote, into its first two elements (which the paper
    does not define).

    Raises:
        ValueError: for votes of a single element, which have no room for two coordinates.
    """
    if rows * columns < 2:
        raise ValueError("votes of 1 element have no room for two coordinates; at least 2 are needed")
    weights = torch.eye(columns)[:2] if rows == 1 else torch.eye(columns)[-1:]
    return scale * weights  # a checkpoint cannot hold a part of a storage


def append_coordinates(children: Capsules, rows: int, start: float = 0.5) -> Capsules:
    """Return the children with poses [b, h, w, i, rows * columns] that have the columns which `coordinate_weights`
    takes: (i + start) / n of row or column i of n.

    Raises:
        ValueError: for children without positions.
    """
    poses = children.poses
    if poses.ndim != 5:
        raise ValueError(f"coordinates need children with positions [b, h, w, i, d], not {list(poses.shape)}")
    b, h, w, i, _ = poses.shape
    along = (torch.arange(n, device=poses.device, dtype=poses.dtype) for n in (h, w))
    y, x = torch.meshgrid(*((index + start) / n for index, n in zip(along, (h, w), strict=True)), indexing="ij")
    place = torch.stack((y, x), -1)  # [h, w, 2]
    place = place.unsqueeze(-2) if rows == 1 else F.pad(place, (0, rows - 2)).unsqueeze(-1)  # [h, w, r, extra]
    place = place[:, :, None].expand(b, -1, -1, i, -1, -1)
    return children._replace(poses=torch.cat((poses.unflatten(-1, (rows, -1)), place), -1).flatten(-2))
