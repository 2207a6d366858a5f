"""Whether a device takes a fused step: tried once for each type of children and weights, on a few images, beside the
plain one.

What can go wrong on a GPU goes wrong at the first launch: no compiler for Triton's launcher, a GPU that Triton does not
know, more shared memory or registers than there are. So the first step of a layer on a device, or of another type than
before, is a trial, forward and backward, at the layer's own sizes, with random numbers in place of its weights and
children. It costs a compilation that the steps after it would have waited for; they ask a dictionary.
"""

from __future__ import annotations

import copy
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchcaps.capsules import Capsules
from torchcaps.routing import Routing, Step
from torchcaps.votes import ConvVotes, LinearVotes, Votes

if TYPE_CHECKING:
    from torchcaps.routing.fused import FusedStep

Known = LinearVotes | ConvVotes  # of which a trial can be made
TRIED = {"cuda"}  # kinds of devices whose kernels are tried
IMAGES = 8  # at least
TOLERANCE = (
    1e-2  # of a result, by its length: a kernel that is wrong is off by more, a sign that rounding turns by less
)
ROUNDING = 10  # times what rounding does to the plain step, where that is more
HALF = 5e-2  # the same where children, or weights, are in half precision, whose own rounding is 0.4% at most
SMALL = 1e-3  # of the longest result: what one that cancels to nothing is measured by
LEAST = 1e-4  # where all of them do


Kinds = tuple[torch.dtype, torch.dtype]  # of children and of weights
_Where = tuple[torch.device, torch.dtype, torch.dtype]


def _where(votes: Votes) -> _Where:
    """Return what a kernel is compiled for: the device, and the types of children and weights."""
    if isinstance(votes, (LinearVotes, ConvVotes)):
        return votes.device, votes.capsules.poses.dtype, votes.weight.dtype
    return votes.device, votes.dtype, votes.dtype


def _show(votes: Votes) -> str:
    """Return where a kernel was tried, and for children of which type where that is not float32."""
    device, children, _ = _where(votes)
    return f"on {device}" if children == torch.float32 else f"on {device} for children in {str(children)[6:]}"


class Fused:
    """A fused step, and the devices and types where it was found to run and to be right.

    Args:
        step: as it was registered.
        demanded: whether it is to be taken wherever it was not tried, and its failure is an error.
    """

    def __init__(self, step: FusedStep, demanded: bool):
        self.step, self.demanded = step, demanded
        self._trusted: dict[_Where, bool] = {}
        self._served: dict[torch.device, bool] = {}  # whether all trials on a device went well
        self.faults: dict[_Where, str] = {}  # why it is not taken

    def __reduce__(self) -> tuple[type[Fused], tuple[FusedStep, bool]]:
        return Fused, (self.step, self.demanded)  # what was found of one machine does not hold for the next

    def __deepcopy__(self, memo: dict[int, object]) -> Fused:
        """Return a copy that knows what was found, since it stays on this machine."""
        copied = Fused(self.step, self.demanded)
        copied._trusted, copied._served = dict(self._trusted), dict(self._served)
        copied.faults = dict(self.faults)
        return copied

    def taken(self, routing: Routing[Any], votes: Votes) -> bool:
        """Return whether the step is to be taken on the device of `votes`, which is tried where that is not known.

        Only steps that run now, on tensors that hold numbers, can be a trial: not those that are compiled or recorded,
        for which those of other types count.

        Raises:
            ValueError: where the step was demanded and fails; it says why.
        """
        if votes.device.type not in TRIED:
            return True
        known = self._trusted.get(_where(votes))
        if known is None and _holds_numbers(votes):
            return self._try(routing, votes)
        return self._served.get(votes.device, self.demanded) if known is None else known

    def fault(self, votes: Votes) -> str | None:
        """Return why it is not taken for votes like these; None where it is, or was not tried."""
        return self.faults.get(_where(votes))

    def _try(self, routing: Routing[Any], votes: Votes) -> bool:
        reason = fault(self.step, routing, votes)
        self._trusted[_where(votes)] = reason is None
        self._served[votes.device] = self._served.get(votes.device, True) and reason is None
        if reason is not None:
            self.faults[_where(votes)] = reason
        if reason is not None and self.demanded:
            raise ValueError(
                f"implementation is 'fused', but the kernel of {routing.spec.name!r} does not serve {_show(votes)}: "
                f"{reason}; use 'auto' or 'plain'"
            )
        if reason is not None:
            _warn(f"torchcaps: layers of {routing.spec.name!r} take plain steps {_show(votes)}: {reason}")
        return reason is None


_said: set[str] = set()


def _warn(message: str) -> None:
    """Warn once a process."""
    if message not in _said:
        _said.add(message)
        warnings.warn(message, stacklevel=2)


def _holds_numbers(votes: Votes) -> bool:
    """Return whether votes are of tensors that are computed now, and of which a trial would be of no harm."""
    if torch.compiler.is_compiling() or (votes.device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        return False
    if not isinstance(votes, Known):
        return True  # of which there is none
    return all(type(x) in (Tensor, nn.Parameter) for x in (votes.weight, votes.capsules.poses))


def fault(step: FusedStep, routing: Routing[Any], votes: Votes) -> str | None:
    """Return why `step` cannot stand in for the plain one of `routing` on votes like `votes`; None where it can.

    The trial has a thread of its own, where none of the modes are that the caller may be in: no gradients, autocast,
    hooks on saved tensors, counters of operations.
    """
    if not isinstance(votes, Known):
        return None  # votes of one's own: so is the judgement of their kernel
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_compare, step, routing, votes).result()


def _compare(step: FusedStep, routing: Routing[Any], votes: Known) -> str | None:
    dtype = torch.promote_types(votes.weight.dtype, torch.float32)
    kinds = votes.capsules.poses.dtype, votes.weight.dtype
    try:
        if votes.device.type == "cuda":
            torch.cuda.synchronize(votes.device)  # what the caller's stream still writes is copied here
        exact, plain = (_outcome(None, routing, votes, each) for each in (torch.float64, dtype))
        found = _outcome(step, routing, votes, dtype)
        apart = _furthest(found, exact, [max(TOLERANCE, ROUNDING * x) for x in _distances(plain, exact)])
        half = min(kinds, key=lambda kind: kind.itemsize)
        if apart is None and half.itemsize < dtype.itemsize <= torch.float32.itemsize:
            exact = _outcome(None, routing, votes, torch.float64, kinds)
            with torch.autocast(votes.device.type, half, enabled=kinds[0] != kinds[1]):  # which alone mixes types
                plain, found = (_outcome(each, routing, votes, dtype, kinds) for each in (None, step))
            apart = _furthest(found, exact, [max(HALF, ROUNDING * x) for x in _distances(plain, exact)])
    except Exception as error:  # which one it is depends on what is missing, and on the versions of torch and Triton
        return name_error(error)
    return None if apart is None else f"its results differ from those of the plain step by {apart:.1%}"


def _distances(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Return how far each result is from the exact one, by its length."""
    longest = max(x.norm().item() for x in exact)
    lengths = [max(x.norm().item(), SMALL * longest, LEAST) for x in exact]
    return [(x - y).norm().item() / length for x, y, length in zip(found, exact, lengths, strict=True)]


def _furthest(found: list[Tensor], exact: list[Tensor], allowed: list[float]) -> float | None:
    """Return the first distance that is more than what is allowed, or no number; None where there is none."""
    pairs = zip(_distances(found, exact), allowed, strict=True)
    return next((apart for apart, most in pairs if not apart <= most), None)


def name_error(error: Exception) -> str:
    """Return what kind of error it is and the first line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _outcome(
    step: FusedStep | None, routing: Routing[Any], votes: Known, dtype: torch.dtype, kinds: Kinds | None = None
) -> list[Tensor]:
    """Return what two iterations of `step`, or of the plain one, give in `dtype`, and all gradients, in float64.

    Args:
        kinds: types of children and weights, to which they are rounded, and in which they come, but in float64.
    """
    twin, like, leaves = _alike(routing, votes, dtype, kinds, dtype != torch.float64)
    outs = run(step, twin, like, 2)
    generator = torch.Generator(votes.device).manual_seed(1)
    # rough ones: of smooth ones a normed parent, whose gradient is across it, leaves next to nothing
    weights = [torch.randn(x.shape, generator=generator, device=x.device).to(x.dtype) for x in outs]
    gradients = torch.autograd.grad(outs, leaves, weights, allow_unused=True)
    return [x.detach().double() for x in (*outs, *gradients) if x is not None]


def run(step: FusedStep | None, routing: Routing[Any], votes: Votes, iterations: int) -> list[Tensor]:
    """Return poses and, where there are any, activations after `iterations` of `step`, or of the plain one."""
    prepared = routing.prepare(votes)
    result = _iterate(step, routing, prepared, routing.start(prepared), 0)
    for t in range(1, iterations if routing.spec.iterative else 1):
        result = _iterate(step, routing, prepared, result.state, t)
    return [x for x in result.capsules if x is not None]


def _iterate(step: FusedStep | None, routing: Routing[Any], votes: Votes, state: Any, t: int) -> Step[Any]:
    return routing.step(votes, state, t) if step is None else step(routing, votes, state, t)


def _alike(
    routing: Routing[Any], votes: Known, dtype: torch.dtype, kinds: Kinds | None, kept: bool
) -> tuple[Routing, Known, list[Tensor]]:
    """Return a copy of `routing`, votes of a few images at the sizes of `votes`, and the leaves of both.

    `kinds`, where there are any, are what children and weights are rounded to, and `kept` says whether they stay so.
    """
    generator = torch.Generator(votes.device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=votes.device).to(dtype).requires_grad_()

    twin = copied(routing).to(kinds[1] if kinds is not None and kept else dtype)
    poses, activations = votes.capsules
    window, shape = (votes.children,), list(poses.shape)
    if isinstance(votes, ConvVotes):  # two windows side by side, where the image has room for them
        window = (*votes.kernel, shape[-2])
        least = [max(1, k + votes.stride - 2 * votes.padding) for k in votes.kernel]
        shape[1:3] = [min(pair) for pair in zip(votes.image, least, strict=True)]
    columns, m = votes.weight.shape[-2:]
    shape[0] = max(IMAGES, columns)  # of fewer some steps make the votes themselves
    children, weight = draw(*shape), draw(votes.parents, *window, columns, m)
    leaves = [children, weight, *(p for p in twin.parameters() if p.requires_grad)]
    active = None
    if activations is not None or twin.spec.needs_activations:
        leaves.append(draw(*shape[:-1]))
        active = leaves[-1].sigmoid()
    u, w = children, weight / columns**0.5
    if kinds is not None:
        u, w = u.to(kinds[0]), w.to(kinds[1])
    if kinds is not None and not kept:
        u, w = u.to(dtype), w.to(dtype)
    inputs = Capsules(u, active), w, votes.rows
    if isinstance(votes, ConvVotes):
        return twin, ConvVotes(*inputs, votes.stride, votes.padding), leaves
    return twin, LinearVotes(*inputs), leaves


def copied(routing: Routing) -> Routing:
    """Return a copy with leaves for parameters, whatever they are: a tensor that is no leaf has no copy of its own."""
    made: dict[int, object] = {id(x): x.detach().clone() for x in routing.buffers()}
    made |= {id(p): nn.Parameter(p.detach().clone(), p.requires_grad) for p in routing.parameters()}
    return copy.deepcopy(routing, made)
