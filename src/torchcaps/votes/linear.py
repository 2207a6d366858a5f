"""Votes of linear capsules: every child votes for every parent."""

from __future__ import annotations

from torch import Tensor

from torchcaps.capsules import Capsules
from torchcaps.votes.affine import AffineVotes, check_types
from torchcaps.votes.binary import Threshold, binary_children, binary_weight


class LinearVotes(AffineVotes):
    """See `Votes` for the sums. A pose is `rows` x `columns` flattened; a vector pose has one row, so v = u W.

    Args:
        capsules: children, poses [b, i, rows * columns] and activations [b, i] or None.
        weight: [j, i, columns, m].
        rows: rows of a pose, at least 1.
        binary: see `AffineVotes`.

    Raises:
        ValueError: when the children are not what the weight takes, in shape or type.
    """

    def __init__(self, capsules: Capsules, weight: Tensor, rows: int = 1, binary: bool = False):
        check_types(capsules, weight.dtype)
        if capsules.poses.shape[1:] != (weight.shape[1], rows * weight.shape[2]):
            raise ValueError(
                f"the children are {tuple(capsules.poses.shape[1:])} (capsules, pose), but the transform takes "
                f"({weight.shape[1]}, {rows * weight.shape[2]})"
            )
        activations = None if capsules.activations is None else capsules.activations.unsqueeze(1)
        super().__init__(weight, rows, activations=activations, binary=binary)
        self.capsules = capsules

    def binarized(self, threshold: Threshold = "zero") -> LinearVotes:
        children = binary_children(self.capsules, self.rows, threshold)
        return LinearVotes(children, binary_weight(self.weight, threshold), self.rows, binary=True)

    def _gather(self) -> Tensor:  # [b, 1, i, r, c]
        return self.capsules.poses.unsqueeze(1).unflatten(-1, (self.rows, -1))
