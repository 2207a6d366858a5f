"""The operation of dynamic routing in terms of the plain sums over votes: see `op.dynamic_step` for its arguments."""

from __future__ import annotations

from torch import Tensor

from torchcaps.capsules import Capsules
from torchcaps.votes import LinearVotes


def plain(
    poses: Tensor, weight: Tensor, state: Tensor | None, initial: Tensor | None, xnor: bool, binary: bool, last: bool
) -> Tensor:
    """Return sum_i c_ij v_ij, [b, j, d]; inputs of one type."""
    votes = LinearVotes(Capsules(poses), weight, poses.shape[2] // weight.shape[2], binary)
    if state is None:
        return votes.combine().squeeze(1) / votes.parents
    logits = votes.agree(state.unsqueeze(1), "xnor" if xnor else "dot")  # [b, 1, i, j]
    if last:
        logits = logits.detach()
    return votes.combine(votes.compete(logits if initial is None else logits + initial)).squeeze(1)
