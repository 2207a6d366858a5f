"""Capsules with inverted dot-product attention routing (Tsai et al., ICLR 2020), Procedure 1.

The authors' released code gathers convolutional windows by a view that mixes pose and position; here a window is a
window, as in the first author's fork (2020). Their code also divides the agreement by the root of the pose size, which
the paper does not write: that is the setting `scaled`, off by default, and on in the networks of
`models.inverted_attention`, since the published numbers were made with it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchcaps.capsules import Capsules
from torchcaps.names import check_choice
from torchcaps.routing.interface import Routing, S, Sizes, Spec, Start, Takes
from torchcaps.routing.registry import register_routing
from torchcaps.votes import Scope, Votes


class WideLayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` that takes sums which are wider than its own gain and bias, as they come, and stays wide."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(
            input, self.normalized_shape, self.weight.to(input.dtype), self.bias.to(input.dtype), self.eps
        )


class Attention(Routing[S]):
    """What inverted attention and its ablation C have in common: the parents' norm, the scale of agreements, a start.

    The arguments are those of `InvertedAttention`.
    """

    def __init__(
        self,
        sizes: Sizes,
        layer_norm: bool = True,
        scaled: bool = False,
        scope: Scope = "window",
        start: Start = "zero",
        bias: bool = False,
    ):
        super().__init__(sizes)
        check_choice("scope", scope, ("window", "image"))
        self.norm = WideLayerNorm(self.sizes.pose) if layer_norm else nn.Identity()
        self.scaled = scaled
        self.scale = self.sizes.pose**-0.5 if scaled else 1.0
        self.scope: Scope = scope
        self.keep_start(start, torch.randn, self.sizes.parents, self.sizes.pose)
        self.keep_bias(bias)

    def first_parents(self) -> Tensor | None:
        """Return the parents [1, 1, j, d] before the first iteration; None stands for zero."""
        return None if self.initial is None else self.initial[None, None]

    def compete(self, votes: Votes, logits: Tensor | None) -> Tensor:
        return votes.compete(logits, scope=self.scope)


@register_routing
class InvertedAttention(Attention[Tensor | None]):
    """r = softmax_j(vote_ij . p_j), p_j = LayerNorm(sum_i r_ij vote_ij), from p = 0 (Eq. 2 to 4).

    From zero, the first iteration has no parents to agree with: its coupling is uniform, 1/J, and it is a plain
    convolution. Ablation B of the paper is a stack with the sequential schedule, ablation C is "inverted-attention-c".

    Args:
        sizes: of the layer.
        layer_norm: normalise the parents; one affine norm serves all capsules and iterations of the layer. Without it
            this is the paper's ablation A.
        scaled: divide the agreement by sqrt(d), as the authors' code does and Eq. 2 does not.
        scope: a child competes over the parents at one position ("window") or over all that see it ("image").
        start: of the parents: "zero"; "random", normal and drawn once for each parent when the layer is built;
            "learnt", from zero (footnote 1, which does not say how they are drawn). All images and positions share it.
        bias: add a learnt one to each parent before the norm, see `Routing.add_bias`.
    """

    spec = Spec(
        name="inverted-attention",
        paper="Tsai et al. 2020",
        time="R b I J d d'",
        memory="R b I J",
        iterative=True,
        couplings=True,
        loss="cross-entropy",
        takes=Takes(matrix=True, squashed=False, layer_norm=True),
    )

    def start(self, votes: Votes) -> Tensor | None:
        return self.first_parents()

    def couple(self, votes: Votes, state: Tensor | None, t: int) -> Tensor | None:
        if state is None:
            return None if self.scope == "window" else self.compete(votes, None)
        return self.compete(votes, votes.agree(state * self.scale))

    def update(self, votes: Votes, coupling: Tensor | None, state: Tensor | None, t: int) -> tuple[Capsules, Tensor]:
        total = votes.combine() / votes.parents if coupling is None else votes.combine(coupling)
        parents = self.norm(self.add_bias(total))  # [b, p, j, d]
        return Capsules(parents), parents
