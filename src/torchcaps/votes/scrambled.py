"""Votes of windows as the released code of inverted attention gathers them (Tsai et al. 2020): pose and position mixed.

For each child of a window its layer holds the pose of that child at all L positions as [d, L], and reads this memory as
if it were [L, d]. So element e of the child at position p is element (p d + e) // L at position (p d + e) % L: a window
sees up to d positions and one or two elements of a pose, in place of one position and its whole pose. The published
accuracies may rest on it. Here it is an option (`ConvTransform(..., scrambled=True)`), so that this can be measured.
"""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor

from torchcaps.capsules import Capsules
from torchcaps.votes.affine import AffineVotes
from torchcaps.votes.binary import Threshold
from torchcaps.votes.conv import ConvVotes


class ScrambledVotes(ConvVotes):
    """The sums of `ConvVotes`, of windows whose poses are read across positions. No kernel knows these votes.

    What stands in a window is of many children, so that it has no activation, no sign of its own and no other window
    that sees it.

    Args:
        capsules: children, poses [b, h, w, i, d]; activations are left out.
        weight: [j, kernel height, kernel width, i, columns, m].
        rows: rows of a pose, at least 1.
        stride: of the windows, in positions; none leaves the image.

    Raises:
        ValueError: as `ConvVotes`; when the votes are to be binarized, or to compete over the image.
    """

    def __init__(self, capsules: Capsules, weight: Tensor, rows: int = 1, stride: int = 1):
        super().__init__(Capsules(capsules.poses), weight, rows, stride)

    def binarized(self, threshold: Threshold = "zero") -> NoReturn:
        raise ValueError("scrambled windows have no poses to binarize: build the transform without `scrambled`")

    def _gather(self) -> Tensor:  # [b, p, i, r, c]
        windows = super()._gather().flatten(-2)  # [b, p, i, d]
        b, p, i, d = windows.shape
        mixed = windows.permute(0, 2, 3, 1).reshape(b, i, p, d).transpose(1, 2)  # the memory of [d, p] read as [p, d]
        return mixed.unflatten(-1, (self.rows, -1))

    def _sum(self, weight: Tensor) -> Tensor:
        """Return the sum, without a convolution: it would see windows as they are."""
        return AffineVotes._sum(self, weight)

    def _compete_over_image(self, logits: Tensor | None) -> NoReturn:
        raise ValueError("a child of scrambled windows is in no window as a whole: use scope 'window'")
