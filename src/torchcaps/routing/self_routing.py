"""Self-routing (Hahn, Pyeon and Kim, NeurIPS 2019): each child decides by itself, a mixture of experts.

The share that child i gives to parent j is a softmax of a linear map of its own pose; no agreement is asked for. That
map is one more column of the child's transform: a vote has an element more than a parent's pose, its last, which is the
logit. So W, and with it the windows and their sums, are those of all other routings.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchcaps.capsules import Capsules, widen
from torchcaps.names import check_above
from torchcaps.routing.interface import Routing, Sizes, Spec, Takes
from torchcaps.routing.registry import register_routing
from torchcaps.votes import Votes


@register_routing
class SelfRouting(Routing[None]):
    """c_ij = softmax_j(R_ij u_i + r_ij), a_j = sum_i a_i c_ij / sum_i a_i, pose_j = sum_i a_i c_ij W_ij u_i / sum a c.

    The last element of a vote is R_ij u_i, and is not in the parent's pose: of `sizes.pose` elements of a vote a parent
    has one less, so that a transform's `parent_pose` is one more than that pose. The paper starts from R = 0 and r = 0,
    where all parents get the same: `models.heads` and the paper's networks set that column of the transform to zero.

    Args:
        sizes: of the layer.
        eps: floor of the sums of activations where they divide.
    """

    spec = Spec(
        name="self-routing",
        paper="Hahn et al. 2019",
        time="b I J d d'",
        memory="b I J",
        iterative=False,
        couplings=True,
        needs_activations=True,
        gives_activations=True,
        hidden=1,
        loss="normalised-cross-entropy",
        takes=Takes(squashed=False),
    )

    def __init__(self, sizes: Sizes, eps: float = 1e-8):
        super().__init__(sizes)
        check_above("eps", eps)
        self.eps = eps
        self.offset = nn.Parameter(torch.zeros(*sizes[:2]))  # r, [i, j]

    def couple(self, votes: Votes, state: None, t: int) -> Tensor:
        basis = torch.eye(self.sizes.pose, dtype=self.offset.dtype, device=self.offset.device)[-1]  # [d], of the logits
        return self.compete(votes, votes.agree(basis.expand(1, 1, votes.parents, -1)) + self.offset)

    def update(self, votes: Votes, coupling: Tensor, state: None, t: int) -> tuple[Capsules, None]:
        assert votes.activations is not None
        active = widen(votes.activations)  # [b, p, i]
        weights = (coupling * active.unsqueeze(-1)).expand(-1, -1, -1, votes.parents)
        total = weights.sum(2)  # [b, p, j]
        poses = votes.combine(weights / total.clamp_min(self.eps).unsqueeze(2))[..., :-1]
        return Capsules(poses, total / active.sum(2, keepdim=True).clamp_min(self.eps)), None
