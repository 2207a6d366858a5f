"""What the operation of EM routing takes, as its homes are given it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """As `em_step` describes them, contiguous and of one type; a mean has a prior."""

    poses: Tensor
    weight: Tensor
    activations: Tensor
    mean: Tensor | None
    scale: Tensor | None
    prior: Tensor | None


class Geometry(NamedTuple):
    rows: int  # of a pose
    stride: int  # of the windows, as the next
    padding: int
    whole: bool  # a child competes over all windows that see it, not at each position apart
    dot: bool  # votes are compared by dot product, of this routing in each iteration after the first
