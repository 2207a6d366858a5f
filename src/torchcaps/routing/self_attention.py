"""Self-attention routing of Efficient-CapsNet (Mazzia, Salvetti and Chiaberge 2021), in one pass.

The paper writes a Gram matrix of the votes for a parent and sums its rows. A row's sum is the dot product of a vote
with the sum of all votes, so the matrix is not needed: the cost grows with the children, not with their square. As in
the released code logits are divided by the root of the parent's pose (the paper has the child's), and the learnt prior
is added behind the softmax, so that a child's couplings do not add up to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchcaps.capsules import Capsules, squash, squash_exponential, widen
from torchcaps.names import check_choice
from torchcaps.routing.interface import Routing, Sizes, Spec
from torchcaps.routing.registry import register_routing
from torchcaps.votes import Votes


@register_routing
class SelfAttention(Routing[None]):
    """c = softmax_j(vote_ij . sum_k vote_kj / sqrt(d)), parent_j = squash(sum_i (c_ij + b_ij) vote_ij).

    Args:
        sizes: of the layer.
        prior: whether there is b, a learnt number for each child and parent, from zero.
        shrink: "exponential", the paper's squash (1 - exp(-|s|)) s / |s|, or "squash", that of Sabour et al. 2017.
        bias: add a learnt one to each parent before the squash, see `Routing.add_bias`.
    """

    spec = Spec(
        name="self-attention",
        paper="Mazzia et al. 2021",
        time="b I J d d'",
        memory="b I J",
        iterative=False,
        couplings=True,
    )

    def __init__(self, sizes: Sizes, prior: bool = True, shrink: str = "exponential", bias: bool = False):
        super().__init__(sizes)
        check_choice("shrink", shrink, ("exponential", "squash"))
        self.shrink = squash_exponential if shrink == "exponential" else squash
        self.prior: Tensor | None
        self.register_parameter("prior", nn.Parameter(torch.zeros(*sizes[:2])) if prior else None)  # [i, j]
        self.keep_bias(bias)

    def query(self, votes: Votes) -> Tensor:
        """Return what each vote is compared with: the sum of all votes for its parent, over sqrt(d), [b, p, j, d]."""
        return widen(votes.combine()) * votes.pose**-0.5

    def couple(self, votes: Votes, state: None, t: int) -> Tensor:
        """Return the shares, to which `update` adds the prior."""
        return self.compete(votes, votes.agree(self.query(votes)))

    def update(self, votes: Votes, coupling: Tensor, state: None, t: int) -> tuple[Capsules, None]:
        return self.parents(votes, votes.combine(coupling)), None

    def parents(self, votes: Votes, total: Tensor) -> Capsules:
        """Return the capsules of `total`, sum_i c_ij vote_ij [b, p, j, d], and the prior's part, which is one product
        with b W, folded.
        """
        if self.prior is not None:
            total = total + votes.combine(self.prior)
        return Capsules(self.shrink(self.add_bias(total)))
