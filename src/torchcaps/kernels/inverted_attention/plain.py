"""The operation of inverted attention in terms of the plain sums over votes: see `op.attend` for its arguments."""

from __future__ import annotations

from torch import Tensor

from torchcaps.capsules import Capsules
from torchcaps.votes import ConvVotes


def plain(
    poses: Tensor, weight: Tensor, query: Tensor, rows: int, stride: int, padding: int, xnor: bool, binary: bool
) -> Tensor:
    """Return sum_i softmax_j(v_ij . q_j) v_ij, [b, p, j, d]; inputs of one type."""
    votes = ConvVotes(Capsules(poses), weight, rows, stride, padding, binary)
    return votes.combine(votes.compete(votes.agree(query, "xnor" if xnor else "dot")))
