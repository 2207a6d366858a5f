"""Dynamic routing between capsules (Sabour, Frosst and Hinton 2017), Procedure 1.

The logits of iteration t are the votes times the sum of all outputs so far, b_ij = vote_ij . (v_1 + ... + v_{t-1}), so
the state is that sum, parent-sized; no logits are kept, and no agreement is computed after the last output.
"""

from __future__ import annotations

from torch import Tensor

from torchcaps.capsules import Capsules, squash
from torchcaps.routing.interface import Routing, Sizes, Spec, register_routing
from torchcaps.votes import Over, Votes


@register_routing
class Dynamic(Routing):
    """c = softmax_j(b), v_j = squash(sum_i c_ij vote_ij), b_ij += vote_ij . v_j, from b = 0.

    Args:
        sizes: of the layer.
        over: who competes. "parents" is the paper's; "children" trains deep networks where the paper's does not
            (EncapNet, section A.i).
        gradients: "all" iterations, or the "last" only, as the authors stop them: the logits are then constants.
    """

    spec = Spec(
        name="dynamic",
        paper="Sabour et al. 2017",
        time="R b I J d d'",
        memory="R b I J",
        iterative=True,
        couplings=True,
    )

    def __init__(self, sizes: Sizes, over: Over = "parents", gradients: str = "all"):
        super().__init__(sizes)
        if over not in ("parents", "children"):
            raise ValueError(f"over is {over!r}; it must be 'parents' or 'children'")
        if gradients not in ("all", "last"):
            raise ValueError(f"gradients is {gradients!r}; it must be 'all' or 'last'")
        self.over: Over = over
        self.gradients = gradients

    def couple(self, votes: Votes, state: Tensor | None, t: int) -> Tensor | None:
        if state is None:
            return None if self.over == "parents" else votes.compete(None, self.over)
        logits = votes.agree(state)  # [b, p, i, j]
        return votes.compete(logits.detach() if self.gradients == "last" else logits, self.over)

    def update(self, votes: Votes, coupling: Tensor | None, state: Tensor | None, t: int) -> tuple[Capsules, Tensor]:
        total = votes.combine() / votes.parents if coupling is None else votes.combine(coupling)
        parents = squash(total)
        return Capsules(parents), parents if state is None else state + parents
