"""Uniform routing: every child shares itself equally among the parents. The control that every claim must beat."""

from __future__ import annotations

from torchcaps.capsules import Capsules, squash
from torchcaps.routing.interface import Routing, Sizes, Spec
from torchcaps.routing.registry import register_routing
from torchcaps.votes import Votes


@register_routing
class Uniform(Routing[None]):
    """v_j = squash(1/J sum_i vote_ij): dynamic routing with one iteration (Sabour et al. 2017).

    Args:
        sizes: of the layer.
        bias: add a learnt one to each parent before the squash, see `Routing.add_bias`.
    """

    spec = Spec(
        name="uniform",
        paper="Sabour et al. 2017, one iteration",
        time="b I J d d'",
        memory="b J d",
        iterative=False,
        couplings=False,
    )

    def __init__(self, sizes: Sizes, bias: bool = False):
        super().__init__(sizes)
        self.keep_bias(bias)

    def couple(self, votes: Votes, state: None, t: int) -> None:
        return None

    def update(self, votes: Votes, coupling: None, state: None, t: int) -> tuple[Capsules, None]:
        return Capsules(squash(self.add_bias(votes.combine() / votes.parents))), None
