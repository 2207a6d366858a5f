"""The fused step of `InvertedAttention`; its first from zero parents is the plain one, a convolution or a GEMM."""

from __future__ import annotations

from torch import Tensor

from torchcaps.capsules import Capsules
from torchcaps.kernels.inverted_attention.op import attend
from torchcaps.kernels.rule import off_cuda, unless_wide
from torchcaps.routing import Step
from torchcaps.routing.fused import Transform, register_kernel
from torchcaps.routing.inverted_attention import InvertedAttention
from torchcaps.votes import ConvVotes, LinearVotes


def supports(transform: Transform, routing: InvertedAttention) -> str | None:
    """Refuse scope "image": a child that competes over all windows that see it needs a sum over windows before any
    of them can go on.
    """
    if routing.scope != "window":
        return f"the attention kernel takes scope 'window', not {routing.scope!r}"
    return None


@register_kernel(LinearVotes, InvertedAttention, supports, off_cuda)
def linear_step(routing: InvertedAttention, votes: LinearVotes, state: Tensor | None, t: int) -> Step[Tensor | None]:
    """Take the step of a linear layer, which is an image of one place that a window of one place sees."""
    if state is None:
        return routing.step(votes, state, t)
    poses, weight = votes.capsules.poses[:, None, None], votes.weight[:, None, None]
    return _finish(routing, votes, attend(poses, weight, _query(routing, votes, state), votes.rows, 1, 0))


@register_kernel(ConvVotes, InvertedAttention, supports, unless_wide)
def conv_step(routing: InvertedAttention, votes: ConvVotes, state: Tensor | None, t: int) -> Step[Tensor | None]:
    if state is None:
        return routing.step(votes, state, t)
    weight = votes.weight.unflatten(1, (*votes.kernel, -1))
    query = _query(routing, votes, state)
    total = attend(votes.capsules.poses, weight, query, votes.rows, votes.stride, votes.padding)
    return _finish(routing, votes, total)


def _query(routing: InvertedAttention, votes: LinearVotes | ConvVotes, state: Tensor) -> Tensor:
    """Return the parents [b, p, j, d] by which votes are judged, of a state that broadcasts to them."""
    places = votes.space[0] * votes.space[1] if votes.space else 1
    return (state * routing.scale).expand(votes.capsules.poses.shape[0], places, -1, -1)


def _finish(routing: InvertedAttention, votes: LinearVotes | ConvVotes, total: Tensor) -> Step[Tensor | None]:
    """Return what the plain step makes of the same sums, in the type that autocast has them in."""
    parents = routing.norm(routing.add_bias(total.to(votes.dtype)))
    return Step(Capsules(parents), None, parents)
