"""The operation of EM in terms of the plain sums over votes: see `op.em_step` for its arguments."""

from __future__ import annotations

from torch import Tensor

from torchcaps.capsules import Capsules
from torchcaps.votes import ConvVotes


def plain(
    poses: Tensor,
    weight: Tensor,
    activations: Tensor,
    mean: Tensor | None,
    scale: Tensor | None,
    prior: Tensor | None,
    rows: int,
    stride: int,
    padding: int,
    whole: bool,
    dot: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return means, squares about them [b, p, j, d] and sums of weights [b, p, j]; inputs of one type."""
    votes = ConvVotes(Capsules(poses, activations), weight, rows, stride, padding)
    assert votes.activations is not None
    weights = votes.activations.unsqueeze(-1)  # [b, p, i, j | 1]
    if mean is not None and prior is not None:
        logits = votes.agree(mean) if scale is None else -votes.distance(scale, -mean * scale)
        coupling = votes.compete(logits + prior.unsqueeze(2), scope="image" if whole else "window")
        weights = weights * coupling
    else:
        weights = weights.expand(-1, -1, -1, votes.parents)
    total = weights.sum(2)  # [b, p, j]
    share = weights / total.clamp_min(eps).unsqueeze(2)
    found = votes.combine(share)
    return found, votes.squares(share, shift=-found), total
