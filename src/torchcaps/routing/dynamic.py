"""Dynamic routing between capsules (Sabour, Frosst and Hinton 2017), Procedure 1.

The logits of iteration t are the votes times the sum of all outputs so far, b_ij = vote_ij . (v_1 + ... + v_{t-1}), so
the state is that sum, parent-sized; no logits are kept, and no agreement is computed after the last output. Logits that
do not start from zero are [i, j], shared by all images and positions, and are added to it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchcaps.capsules import Capsules, squash
from torchcaps.names import check_choice
from torchcaps.routing.interface import Routing, Sizes, Spec, Start
from torchcaps.routing.registry import register_routing
from torchcaps.votes import Over, Votes


@register_routing
class Dynamic(Routing[Tensor | None]):
    """c = softmax_j(b), v_j = squash(sum_i c_ij vote_ij), b_ij += vote_ij . v_j, from b = 0.

    Args:
        sizes: of the layer.
        over: who competes. "parents" is the paper's; "children" is EncapNet's, whose paper (section A.i) reports
            that its six-layer network does not converge with the other.
        gradients: "all" iterations, as the authors' own code has it, which stops none; or the "last" only, as several
            well-known ports do: the agreements are then constants.
        start: of the logits: "zero"; "random", uniform in [0, 1) and drawn once for each child and parent when the
            layer is built; "learnt", from zero. EncapNet (Li et al. 2018, Table 5) compares the three without defining
            them. Its released code holds this definition, commented out, and another that draws for each image.
        bias: add a learnt one to each parent before the squash, see `Routing.add_bias`.
    """

    spec = Spec(
        name="dynamic",
        paper="Sabour et al. 2017",
        time="R b I J d d'",
        memory="R b I J",
        iterative=True,
        couplings=True,
    )

    def __init__(
        self,
        sizes: Sizes,
        over: Over = "parents",
        gradients: str = "all",
        start: Start = "zero",
        bias: bool = False,
    ):
        super().__init__(sizes)
        check_choice("over", over, ("parents", "children"))
        check_choice("gradients", gradients, ("all", "last"))
        self.keep_start(start, torch.rand, self.sizes.children, self.sizes.parents)
        self.keep_bias(bias)
        self.over: Over = over
        self.gradients = gradients

    def couple(self, votes: Votes, state: Tensor | None, t: int) -> Tensor | None:
        if state is None:
            return self._first_coupling(votes)
        logits = self.agree(votes, state)  # [b, p, i, j]
        if self.gradients == "last":
            logits = logits.detach()
        return self.compete(votes, logits if self.initial is None else logits + self.initial)

    def compete(self, votes: Votes, logits: Tensor | None) -> Tensor:
        return votes.compete(logits, self.over)

    def _first_coupling(self, votes: Votes) -> Tensor | None:
        """Return the coupling before there is an output: None where it is uniform over parents, [1, p, i, 1] over
        children; with initial logits [i, j], or [1, p, i, j] over children.
        """
        if self.over == "children":
            return self.compete(votes, None if self.initial is None else self.initial[None, None])
        return None if self.initial is None else self.initial.softmax(-1)

    def update(self, votes: Votes, coupling: Tensor | None, state: Tensor | None, t: int) -> tuple[Capsules, Tensor]:
        total = votes.combine() / votes.parents if coupling is None else votes.combine(coupling)
        parents = squash(self.add_bias(total))
        recalled = self.recall(parents)
        return Capsules(parents), recalled if state is None else state + recalled

    def agree(self, votes: Votes, state: Tensor) -> Tensor:
        """Return the logits [b, p, i, j]: the products of the votes with `state`, the sum of what was recalled of all
        outputs so far.
        """
        return votes.agree(state)

    def recall(self, parents: Tensor) -> Tensor:
        """Return what the agreement sees of an output [b, p, j, d]: all of it."""
        return parents
