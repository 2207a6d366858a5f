"""XnIDR (Sun, Pourramezan Fard and Mahoor 2023), Table 3: the projection inside dynamic routing, xnorized; and both.

b_ij += (sign vote_ij . sign v_j) mean|vote_ij| mean|v_j|; the votes themselves are in full precision, so no weight is
binary and nothing can be packed. Two slips of Table 3 are mended: b = 0 stands before the loop, and the update after
the last output, which nothing reads, is left out. The scales take no gradient, as in the authors' code.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from torchcaps.capsules import binarize, midpoint
from torchcaps.names import check_choice
from torchcaps.routing.dynamic import Dynamic
from torchcaps.routing.interface import Sizes, Start
from torchcaps.routing.registry import register_routing
from torchcaps.routing.xnodr import XnODR
from torchcaps.votes import Agreement, Over, Threshold, Votes
from torchcaps.votes.binary import THRESHOLDS


@register_routing
class XnIDR(Dynamic):
    """Dynamic routing that carries the sum of binarized outputs, and agrees with binarized votes (Eq. 8).

    Args:
        sizes, over, gradients, start, bias: see `Dynamic`.
        threshold: of the signs, see `XnODR`; of "midpoint" the tensors are all votes and all outputs of an image.
    """

    spec = replace(Dynamic.spec, name="xnidr", paper="Sun et al. 2023, Table 3", exact_gradient=False)

    def __init__(
        self,
        sizes: Sizes,
        over: Over = "parents",
        gradients: str = "all",
        start: Start = "zero",
        bias: bool = False,
        threshold: Threshold = "zero",
    ):
        super().__init__(sizes, over, gradients, start, bias)
        check_choice("threshold", threshold, THRESHOLDS)
        self.agreement: Agreement = "xnor" if threshold == "zero" else "xnor-midpoint"

    def agree(self, votes: Votes, state: Tensor) -> Tensor:
        return votes.agree(state, self.agreement)

    def recall(self, parents: Tensor) -> Tensor:
        middle = midpoint(parents, range(1, parents.ndim)) if self.agreement == "xnor-midpoint" else None
        return binarize(parents, threshold=middle)


@register_routing
class XnODRXnIDR(XnODR, XnIDR):
    """Both projections xnorized: binary votes and binary agreement. Section 3.3.3 says that it predicts awfully.

    Signs are summed before scales are applied, so that a vote whose signs cancel is exactly 0 and has the sign -1.

    Args:
        sizes, over, gradients, start, threshold, bias: see `XnODR`; votes and outputs agree by the signs of zero.
    """

    spec = replace(XnODR.spec, name="xnodr-xnidr", paper="Sun et al. 2023, section 3.3.3")
