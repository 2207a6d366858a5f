"""Children and weights as signs and scales: what the affine projection is made of in XnODR.

A row of a pose and a column of W are what the projection multiplies, so each has one scale (Sun et al. 2023, Table 2:
mean|u| and mean|W| over the child's d). A vector pose is one row.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from torchcaps.capsules import Capsules, binarize, midpoint

Threshold = Literal["zero", "midpoint"]  # what a sign is taken of: x, or x - (min + max) / 2 (appendix A)
THRESHOLDS = ("zero", "midpoint")


def binary_children(capsules: Capsules, rows: int, threshold: Threshold = "zero") -> Capsules:
    """Return the children, poses [b, ..., rows * c] xnorized row by row; "midpoint" is that of each image's poses."""
    poses = capsules.poses.unflatten(-1, (rows, -1))
    middle = midpoint(poses, range(1, poses.ndim)) if threshold == "midpoint" else None
    return capsules._replace(poses=binarize(poses, threshold=middle).flatten(-2))


def binary_weight(weight: Tensor, threshold: Threshold = "zero") -> Tensor:
    """Return `weight` [j, ..., c, m], xnorized along c; "midpoint" is that of each filter: of all weights that make
    output (j, m).
    """
    return binarize(weight, -2, weight_middle(weight, threshold))


def weight_middle(weight: Tensor, threshold: Threshold) -> Tensor | None:
    """Return the threshold of `weight` [j, ..., c, m] as [j, 1, ..., 1, m]; None stands for 0."""
    return midpoint(weight, range(1, weight.ndim - 1)) if threshold == "midpoint" else None
