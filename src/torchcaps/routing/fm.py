"""FM agreement (Zhao, Wang and Huang 2020), Algorithms 1 and 2: parents are the sum of products of all pairs of votes.

s_j = sum over pairs i1 < i2 of vote_i1j * vote_i2j, element by element, is half of (sum_i vote)^2 - sum_i vote^2
(Eq. 5), so no pair is ever formed, and nothing iterates. Batch norm of the votes (Algorithm 2) is a scale and a shift
that these sums take in; normalising a vote to length one (Algorithm 1) is a coupling, 1/|vote|. The matrix transform of
Algorithm 2 is the layer's `matrix=True`, its ablation (k x k, section 3.3) `matrix=False`.

The authors' code leaves out the half: the setting `halved`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchcaps.capsules import Capsules, lengths, saturate, widen
from torchcaps.names import check_above
from torchcaps.routing.interface import Routing, Sizes, Spec, Step, Takes
from torchcaps.routing.registry import register_routing
from torchcaps.votes import Votes
from torchcaps.votes.normalised import VoteNorm
from torchcaps.votes.protocol import Each

Affine = tuple[Tensor | None, Tensor | None]  # scale and shift of the votes


@register_routing
class FM(Routing[Affine | None]):
    """s_j = 1/(2n) ((sum_i v)^2 - sum_i v^2) for votes v of length one, a_j = sum_f s_jf (Eq. 6 and 8).

    n is the number of children that are present. Poses are s, as hidden layers pass it on; activations are a, a logit
    in [-1/2, (n - 1)/2] (with l2, mean and halved).

    Sums accumulate in float32. A pose beyond the largest number of the votes' type becomes that number: n identical
    votes of 100 make poses of (n - 1)/2 1e4 without l2, and of n (n - 1)/2 1e4 without mean as well, which is more than
    float16 holds (65504) from n = 15 and n = 5 on. Activations stay float32.

    Args:
        sizes: of the layer.
        l2: normalise each vote to length one (section 3.2).
        mean: divide by n, against exploding gradients (Eq. 8).
        halved: the 1/2 of Eq. 5; the authors' code has none.
        batch_norm: statistics of the votes for each pose "element", each (child, element) or each (child, parent,
            element) "pair" (both as the authors' smallNORB network); None leaves batch norm out.
        normalised: give poses s/|s| (Algorithm 1, line 3), as the last layer does for a decoder.
        momentum, batch_norm_eps: of the batch norm, as in `nn.BatchNorm1d`.
        eps: floor of squared lengths of votes and poses, in squared pose units.
    """

    spec = Spec(
        name="fm",
        paper="Zhao et al. 2020",
        time="b I J d d'",
        memory="b I J",
        iterative=False,
        couplings=False,
        gives_activations=True,
        activation="logit",
        loss="cross-entropy",
        takes=Takes(squashed=False),
    )

    def __init__(
        self,
        sizes: Sizes,
        l2: bool = True,
        mean: bool = True,
        halved: bool = True,
        batch_norm: Each | None = "element",
        normalised: bool = False,
        momentum: float = 0.1,
        batch_norm_eps: float = 1e-5,
        eps: float = 1e-12,
    ):
        super().__init__(sizes)
        check_above("eps", eps)
        self.l2, self.mean, self.halved, self.normalised, self.eps = l2, mean, halved, normalised, eps
        self.norm = None if batch_norm is None else VoteNorm(*sizes, batch_norm, momentum, batch_norm_eps)

    def step(self, votes: Votes, state: Affine | None, t: int) -> Step[Affine | None]:
        """Take the one step, with batch norm's scale and shift as the state; none is carried on."""
        affine = (None, None) if self.norm is None else self.norm(votes)
        return super().step(votes, affine, t)

    def couple(self, votes: Votes, state: Affine | None, t: int) -> Tensor | None:
        """Return 1/|v|, [b, p, i, j], 0 where a child is not present."""
        if not self.l2:
            return None
        assert state is not None
        coupling = torch.rsqrt(votes.distance(*state).clamp_min(self.eps))
        return coupling if votes.present is None else coupling * votes.present[None, :, :, None]

    def update(self, votes: Votes, coupling: Tensor | None, state: Affine | None, t: int) -> tuple[Capsules, None]:
        assert state is not None
        if coupling is None:  # the mean, times n in float32: the sum may leave half precision
            total = widen(votes.combine(votes.compete(None, over="children"), *state)) * self.count(votes)
            squares = votes.squares("ones", *state)
        else:
            total = widen(votes.combine(coupling, *state))
            squares = votes.squares(coupling.square(), *state)
        return self.parents(votes, total, squares), None

    def count(self, votes: Votes) -> Tensor | int:
        """Return n, the number of children that are present; [p, 1, 1] where padding makes it differ from place to
        place.
        """
        return votes.children if votes.present is None else votes.present.sum(-1).clamp_min(1)[:, None, None]

    def parents(self, votes: Votes, total: Tensor, squares: Tensor) -> Capsules:
        """Return the parents of sum_i v and sum_i v^2 [b, p, j, d], of votes as they are normalised."""
        count = self.count(votes) if self.mean else 1
        s = (total.square() - squares) / count / (2 if self.halved else 1)  # [b, p, j, d]
        poses = s / lengths(s, self.eps).unsqueeze(-1) if self.normalised else s
        return Capsules(saturate(poses, votes.dtype), s.sum(-1))
