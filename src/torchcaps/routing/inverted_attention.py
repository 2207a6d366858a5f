"""Capsules with inverted dot-product attention routing (Tsai et al., ICLR 2020), Procedure 1.

The authors' code gathers convolutional windows by a view that mixes pose and position; here a window is a window. It
also divides the agreement by the root of the pose size, which the paper does not write: `scaled`, on by default as in
the code, since the published numbers were made with it.
"""

from __future__ import annotations

from torch import Tensor, nn

from torchcaps.capsules import Capsules
from torchcaps.routing.interface import Routing, Sizes, Spec, register_routing
from torchcaps.votes import Scope, Votes


@register_routing
class InvertedAttention(Routing):
    """r = softmax_j(vote_ij . p_j), p_j = LayerNorm(sum_i r_ij vote_ij), from p = 0 (Eq. 2 to 4).

    The first iteration has no parents to agree with: its coupling is uniform, 1/J.

    Args:
        sizes: of the layer.
        layer_norm: normalise the parents; one affine norm serves all capsules and iterations of the layer. Without it
            this is the paper's ablation A.
        scaled: divide the agreement by sqrt(d), as the authors' code does.
        scope: a child competes over the parents at one position ("window") or over all that see it ("image").
    """

    spec = Spec(
        name="inverted-attention",
        paper="Tsai et al. 2020",
        time="R b I J d d'",
        memory="R b I J",
        iterative=True,
        couplings=True,
    )

    def __init__(self, sizes: Sizes, layer_norm: bool = True, scaled: bool = True, scope: Scope = "window"):
        super().__init__(sizes)
        if scope not in ("window", "image"):
            raise ValueError(f"scope is {scope!r}; it must be 'window' or 'image'")
        self.norm = nn.LayerNorm(sizes.pose) if layer_norm else nn.Identity()
        self.scale = sizes.pose**-0.5 if scaled else 1.0
        self.scope: Scope = scope

    def couple(self, votes: Votes, state: Tensor | None, t: int) -> Tensor | None:
        if state is None:
            return None if self.scope == "window" else votes.compete(None, scope=self.scope)
        return votes.compete(votes.agree(state * self.scale), scope=self.scope)

    def update(self, votes: Votes, coupling: Tensor | None, state: Tensor | None, t: int) -> tuple[Capsules, Tensor]:
        total = votes.combine() / votes.parents if coupling is None else votes.combine(coupling)
        parents = self.norm(total)  # [b, p, j, d]
        return Capsules(parents), parents
