"""The fused step of dynamic routing, of XnIDR, of XnODR and of both, on linear capsules and on windows.

A step of inverted attention is the same sum, so windows take that kernel: only what votes are compared with differs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchcaps.capsules import Capsules, binarize, squash, widen
from torchcaps.kernels.dynamic.op import all_of_few, dynamic_of_few, dynamic_step
from torchcaps.kernels.inverted_attention.op import attend
from torchcaps.kernels.rule import LANES, few_fit, unless_wide
from torchcaps.routing import Step
from torchcaps.routing.dynamic import Dynamic
from torchcaps.routing.fused import Transform, compiling, register_kernel, register_whole
from torchcaps.routing.xnidr import XnIDR, XnODRXnIDR
from torchcaps.routing.xnodr import XnODR
from torchcaps.votes import ConvVotes, LinearVotes

COLUMNS = 3  # of a child's pose, at least, where both projections are binary


def supports(transform: Transform, routing: Dynamic) -> str | None:
    """Return why the kernel does not take a routing, or None: children that compete for a parent need a sum over all of
    them before any can go on, as does the middle of all votes.
    """
    if isinstance(routing, XnIDR) and routing.agreement != "xnor":
        return "the dynamic kernel compares votes by the signs of zero: use threshold 'zero'"
    if routing.over != "parents":
        return f"the dynamic kernel takes over 'parents', not {routing.over!r}"
    return None


def supports_signs(transform: Transform, routing: Dynamic) -> str | None:
    """Return why the kernel does not take binary votes that agree by signs, or None: of one or two products the votes
    of all children are often 0 at once, and rounding gives their sum a sign.
    """
    if transform.shape[-2] < COLUMNS:
        return f"the dynamic kernel takes poses of at least {COLUMNS} columns where both projections are binary"
    return supports(transform, routing)


@register_kernel(LinearVotes, Dynamic, supports, unless_wide)
@register_kernel(LinearVotes, XnODR, supports, unless_wide)
@register_kernel(LinearVotes, XnIDR, supports, unless_wide)
@register_kernel(LinearVotes, XnODRXnIDR, supports_signs, unless_wide)
def dynamic(routing: Dynamic, votes: LinearVotes, state: Tensor | None, t: int) -> Step[Tensor | None]:
    """Return one iteration; a first one that starts from logits is plain, since they are folded into the weights."""
    if state is None and routing.initial is not None:
        return routing.step(votes, state, t)
    signs = votes.binary and isinstance(routing, XnIDR)  # which only the step takes of sums that cancel
    if not signs and 2 * len(votes.capsules.poses) * votes.rows <= votes.weight.shape[2]:
        total = _total_of_few(routing, votes, state)
    else:
        last = routing.gradients == "last"
        poses, weight = votes.capsules.poses, votes.weight
        seen = None if state is None else (state.detach() if last else state).squeeze(1)
        seen = None if seen is None else seen.expand(len(poses), -1, -1)  # [b, j, d]
        initial = None if routing.initial is None else routing.initial.expand(weight.shape[1], weight.shape[0])
        flags = isinstance(routing, XnIDR), votes.binary, last
        total = dynamic_step(poses, weight, seen, initial, *flags).unsqueeze(1)
    return _finish(routing, total, votes, state)


def supports_few(transform: Transform, routing: Dynamic) -> str | None:
    """Refuse what the loop over a few images has no lanes or no logits for."""
    if not few_fit(transform):
        return f"the loop over a few images takes vectors of {LANES} elements or a multiple"
    if routing.initial is not None:
        return "the loop over a few images takes no initial logits: use start 'zero'"
    return supports(transform, routing)


@register_whole(LinearVotes, Dynamic, supports_few)
@register_whole(LinearVotes, XnODR, supports_few)
@register_whole(LinearVotes, XnIDR, supports_few)
@register_whole(LinearVotes, XnODRXnIDR, supports_few, compiled=True)
def of_few(routing: Dynamic, votes: LinearVotes, iterations: int) -> Step[Tensor | None]:
    """Return all iterations."""
    midpoint = isinstance(routing, XnODR) and routing.threshold == "midpoint"
    flags = isinstance(routing, XnODR), midpoint, isinstance(routing, XnIDR), iterations
    route = dynamic_of_few if compiling() else all_of_few
    parents, carried = route(votes.capsules.poses, votes.weight, routing.bias, *flags)
    return Step(Capsules(parents), None, carried.unsqueeze(1))


def supports_windows(transform: Transform, routing: Dynamic) -> str | None:
    """Return why the kernel of windows does not take a routing, or None: its logits are votes times what is carried and
    nothing else, with all their gradients.
    """
    if routing.initial is not None:
        return "on windows the dynamic kernel takes no initial logits: use start 'zero'"
    if routing.gradients == "last":
        return "on windows the dynamic kernel takes gradients 'all', not 'last'"
    return supports(transform, routing)


def supports_signs_of_windows(transform: Transform, routing: Dynamic) -> str | None:
    """Return why the kernel of windows does not take binary votes that agree by signs, or None."""
    return supports_signs(transform, routing) or supports_windows(transform, routing)


@register_kernel(ConvVotes, Dynamic, supports_windows, unless_wide)
@register_kernel(ConvVotes, XnODR, supports_windows, unless_wide)
@register_kernel(ConvVotes, XnIDR, supports_windows, unless_wide)
@register_kernel(ConvVotes, XnODRXnIDR, supports_signs_of_windows, unless_wide)
def dynamic_on_windows(routing: Dynamic, votes: ConvVotes, state: Tensor | None, t: int) -> Step[Tensor | None]:
    """Return one iteration; the first is plain, a convolution."""
    if state is None:
        return routing.step(votes, state, t)
    weight = votes.weight.unflatten(1, (*votes.kernel, -1))
    signs = isinstance(routing, XnIDR)
    flags = signs, signs and votes.binary
    poses, places = votes.capsules.poses, votes.space[0] * votes.space[1]
    seen = state.expand(len(poses), places, -1, -1)
    total = attend(poses, weight, seen, votes.rows, votes.stride, votes.padding, *flags)
    return _finish(routing, total, votes, state)


def _finish(
    routing: Dynamic, total: Tensor, votes: LinearVotes | ConvVotes, state: Tensor | None
) -> Step[Tensor | None]:
    """Return what the plain step makes of the same sums."""
    parents = squash(routing.add_bias(total)).to(votes.dtype)
    recalled = routing.recall(parents)
    return Step(Capsules(parents), None, recalled if state is None else state + recalled)


def _total_of_few(routing: Dynamic, votes: LinearVotes, state: Tensor | None) -> Tensor:
    """Return the same sum where votes are at most half as large as the weights: so few that they are made, once, and
    kept.
    """
    dense = widen(votes.kept)  # [b, 1, i, j, d]
    if state is None:
        return dense.sum(2) / votes.parents
    seen = binarize(dense) if isinstance(routing, XnIDR) else dense
    logits = torch.einsum("bpijd,bpjd->bpij", seen, state.to(dense.dtype))
    if routing.gradients == "last":
        logits = logits.detach()
    coupling = votes.compete(logits if routing.initial is None else logits + routing.initial)
    return torch.einsum("bpij,bpijd->bpjd", coupling, dense)
