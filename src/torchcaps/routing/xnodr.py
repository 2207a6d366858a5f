"""XnODR (Sun, Pourramezan Fard and Mahoor 2023), Table 2: the linear projection outside dynamic routing, xnorized.

vote_ij = (sign u_i . sign W_ij) mean|u_i| mean|W_ij|, then dynamic routing as it is. So these are affine votes of
binarized children and weights, and no algorithm of their own. The weights enter as one bit each and a scale per column:
`torchcaps.packed.pack` keeps just those for inference.
"""

from __future__ import annotations

from dataclasses import replace

from torchcaps.names import check_choice
from torchcaps.routing.dynamic import Dynamic
from torchcaps.routing.interface import Sizes, Start
from torchcaps.routing.registry import register_routing
from torchcaps.votes import Over, Threshold, Votes
from torchcaps.votes.binary import THRESHOLDS


@register_routing
class XnODR(Dynamic):
    """Dynamic routing of votes whose children and weights are signs times scales (Eq. 7).

    Args:
        sizes, over, gradients, start, bias: see `Dynamic`.
        threshold: a sign is that of x, 0 counting as -1 ("zero", as the authors' code), or tells whether x lies above
            the middle between the smallest and the largest value of its tensor ("midpoint", appendix A).
    """

    spec = replace(
        Dynamic.spec, name="xnodr", paper="Sun et al. 2023, Table 2", binary_weights=True, exact_gradient=False
    )

    def __init__(
        self,
        sizes: Sizes,
        over: Over = "parents",
        gradients: str = "all",
        start: Start = "zero",
        threshold: Threshold = "zero",
        bias: bool = False,
    ):
        super().__init__(sizes, over, gradients, start, bias)
        check_choice("threshold", threshold, THRESHOLDS)
        self.threshold: Threshold = threshold

    def prepare(self, votes: Votes) -> Votes:
        return votes.binarized(self.threshold)
