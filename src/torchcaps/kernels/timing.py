"""How long each form of a layer's iterations takes on a device, on random numbers of the layer's own shapes and types.

The two forms take turns, so that a drift of the device's clock meets both, and a turn counts from event to event on
the device's own stream. Random numbers have a generator of their own, and parameters are copies: no trace is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import median
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from torchcaps.capsules import Capsules
from torchcaps.kernels.probe import Known, copied, name_error, run
from torchcaps.routing import Routing
from torchcaps.votes import ConvVotes, LinearVotes

if TYPE_CHECKING:
    from torchcaps.routing.fused import FusedStep

TIMED = {"cuda"}  # kinds of devices where forms are timed; elsewhere the rule says which one is taken
WARM, TURNS = 2, 9


class Times(NamedTuple):
    """Seconds of all iterations, the median over turns; infinite where memory does not suffice, or a kernel fails."""

    plain: float
    fused: float
    fault: str | None = None  # how the fused form failed, where that was for another reason than memory


def time_forms(
    step: FusedStep, routing: Routing, votes: Known, iterations: int, learns: bool, compiled: bool = False
) -> Times:
    """Time the plain form of `routing` and the one by `step`.

    Args:
        step: a fused step, which runs on the device of `votes`.
        routing: of the layer.
        votes: whose shapes, types and device are taken, the number of images too.
        iterations: of the layer.
        learns: whether a turn is forward and backward, or forward alone.
        compiled: whether both forms are compiled first, as those of a compiled training step are; then what the
            compiler raises is raised.
    """
    twin, forms = copied(routing), (None, step)
    turns = [_turn(form, twin, votes, iterations, learns, compiled) for form in forms]
    taken: list[list[float]] = [[], []]
    fault = None
    for number in range(WARM + TURNS):
        for form, turn, found in zip(forms, turns, taken, strict=True):
            if math.inf in found:
                continue
            try:
                found.append(clock(turn, votes.device))
            except torch.OutOfMemoryError:
                found.append(math.inf)
            except Exception as error:  # of a kernel at these sizes, whose trial was at smaller ones
                if form is None or compiled:
                    raise
                found.append(math.inf)
                fault = name_error(error)
        if number == WARM - 1:
            taken = [[x for x in found if x == math.inf] for found in taken]
    plain, fused = (median(found) if math.inf not in found else math.inf for found in taken)
    return Times(plain, fused, fault)


def clock(turn: Callable[[], object], device: torch.device) -> float:
    """Return seconds that `turn` takes on a CUDA device."""
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        turn()
        end.record()
        end.synchronize()
    return begin.elapsed_time(end) / 1000


def _turn(
    step: FusedStep | None, routing: Routing, votes: Known, iterations: int, learns: bool, compiled: bool
) -> Callable[[], object]:
    """Return one pass through all iterations of a form, on votes that are drawn anew for it alone."""
    like, leaves = _alike(routing, votes)
    forward = torch.compile(anew(run), dynamic=False) if compiled else run

    def turn() -> object:
        with torch.set_grad_enabled(learns):
            outs = forward(step, routing, like(), iterations)
        if not learns:
            return outs
        return torch.autograd.grad(outs, leaves, [torch.ones_like(x) for x in outs], allow_unused=True)

    return turn


def anew(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does the same, to be compiled as if nothing had been before.

    torch's compiler keeps eight forms of one piece of code and runs the ninth as it stands, which would be timed for a
    compiled one; and sizes that differ from those before it takes for unknown ones.
    """
    if not isinstance(function, FunctionType):
        return function
    code = function.__code__.replace()
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)


def _alike(routing: Routing, votes: Known) -> tuple[Callable[[], Known], list[Tensor]]:
    """Return what makes votes of random children at the shapes of `votes`, and the leaves of both."""
    generator = torch.Generator(votes.device).manual_seed(0)

    def draw(like: Tensor, scale: float = 1.0) -> Tensor:
        numbers = torch.randn(like.shape, generator=generator, device=votes.device) * scale
        return numbers.to(like.dtype).requires_grad_()

    poses, activations = votes.capsules
    weight = votes.weight.unflatten(1, (*votes.kernel, -1)) if isinstance(votes, ConvVotes) else votes.weight
    children, matrices = draw(poses), draw(weight, weight.shape[-2] ** -0.5)
    leaves = [children, matrices, *(p for p in routing.parameters() if p.requires_grad)]
    active = None
    if activations is not None or routing.spec.needs_activations:
        active = draw(poses[..., 0]).detach().sigmoid().requires_grad_()
        leaves.append(active)

    def make() -> Known:
        inputs = Capsules(children, active), matrices, votes.rows
        if isinstance(votes, ConvVotes):
            return ConvVotes(*inputs, votes.stride, votes.padding)
        return LinearVotes(*inputs)

    return make, leaves
