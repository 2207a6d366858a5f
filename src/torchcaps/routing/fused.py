"""Which fused step stands in for the plain one: looked up by the exact classes of the votes and of the routing.

A step is looked up when a layer is built, never inside its forward pass, so that compilation sees no choice. A subclass
of a routing is another algorithm and has no kernel unless it is registered too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from torchcaps.capsules import transformed
from torchcaps.names import check_choice
from torchcaps.routing.interface import Routing, Sizes, Step
from torchcaps.votes import Votes

Implementation = Literal["auto", "plain", "fused"]
Form = Literal["plain", "fused"]
FusedStep = Callable[[Any, Any, Any, int], Step[Any]]
Supports = Callable[["Transform", Any], str | None]
Suits = Callable[[str, "Transform"], bool]

COMPILERS = {"cpu": ("numba", "llvmlite"), "meta": ("numba", "llvmlite"), "cuda": ("triton",)}  # what kernels need
DEVICES = {device for device, packages in COMPILERS.items() if all(map(find_spec, packages))}  # elsewhere plain steps
_FAULTS: dict[str, str] = {}  # by kind of device: why what compiles its kernels is installed and does not serve


class Transform(Protocol):
    """What is asked of a layer's transform, which a room above defines (`torchcaps.layers.Transform`)."""

    sizes: Sizes
    shape: tuple[int, ...]  # of its matrices, [j, *window, c, m]

    @property
    def makes(self) -> type[Votes] | None:
        """Return the class of its votes; None: no kernel can know them."""
        ...


class Kernel(NamedTuple):
    """A fused step that is registered, and which layers it takes: see `register_kernel`."""

    step: FusedStep
    supports: Supports
    suits: Suits


Whole = Callable[[Any, Any, int], Step[Any]]


class WholeKernel(NamedTuple):
    """All iterations at once, and which layers it takes: see `register_whole`."""

    route: Whole
    supports: Supports
    compiled: bool


_KERNELS: dict[tuple[type, type], Kernel] = {}
_WHOLE: dict[tuple[type, type], WholeKernel] = {}
F = TypeVar("F", bound=FusedStep)
W = TypeVar("W", bound=Whole)


def always(transform: Transform, routing: Routing) -> str | None:
    """Return None: no reason against any setting of a routing. The `supports` of kernels that take all."""
    return None


def anywhere(device: str, transform: Transform) -> bool:
    """Return True: the kernel is the faster form on every device and at every size. The `suits` of such kernels."""
    return True


def register_kernel(
    votes: type, routing: type[Routing], supports: Supports = always, suits: Suits = anywhere
) -> Callable[[F], F]:
    """Return a decorator that registers `step(routing, votes, state, t) -> Step`, one iteration from and to the plain
    routing's state.

    Its coupling is None; the states are the same, so that plain and fused steps may follow each other.

    Args:
        votes: class that the layer's transform makes, `Transform.makes`.
        routing: class of the layer's routing.
        supports: of (transform, routing), the reason why the kernel does not take them, or None when it does.
        suits: of (kind of device, such as "cuda"; transform), whether "auto" takes the kernel there, where nobody has
            timed both forms (`torchcaps.choose`).
    """

    def register(step: F) -> F:
        assert (votes, routing) not in _KERNELS, f"{votes.__name__} of {routing.__name__} have two kernels"
        _KERNELS[votes, routing] = Kernel(step, supports, suits)
        return step

    return register


def register_whole(
    votes: type, routing: type[Routing], supports: Supports = always, compiled: bool = False
) -> Callable[[W], W]:
    """Map a decorator for `route(routing, votes, iterations) -> Step`: all iterations of a layer at once.

    It is for inference: a few images on a CPU, in float32 or float64, and no gradient. It takes votes before
    `Routing.prepare`, and gives the last step, without its coupling. A layer without a fused step, or of plain steps,
    does not take it.

    Args:
        votes, routing, supports: see `register_kernel`.
        compiled: whether `torch.compile` takes it too: then it must be an operation of torch there (`compiling`). Else
            a graph has the steps, of which the compiler makes some faster than a call of an operation is.
    """

    def register(route: W) -> W:
        assert (votes, routing) not in _WHOLE, f"{votes.__name__} of {routing.__name__} have two whole kernels"
        _WHOLE[votes, routing] = WholeKernel(route, supports, compiled)
        return route

    return register


def find_whole(transform: Transform, routing: Routing) -> WholeKernel | None:
    """Return what takes all iterations of a layer at once, see `register_whole`; None where nothing does."""
    if transform.makes is None or "cpu" not in DEVICES:
        return None
    kernel = _WHOLE.get((transform.makes, type(routing)))
    return kernel if kernel is not None and kernel.supports(transform, routing) is None else None


def runs_now(*tensors: Tensor) -> bool:
    """Return whether loops may read the memory of `tensors`, and nobody asks how results are made of them.

    So they are on a CPU, one type of float32 and float64 all of them, and there is neither a gradient nor autocast, nor
    an export, a trace, a transform or a mode that sees each operation of torch. `torch.compile` sees a loop as one
    operation, if the loop is one: see `compiling`.
    """
    first = tensors[0].dtype
    return (
        all(type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" and x.dtype == first for x in tensors)
        and first in (torch.float32, torch.float64)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not watched()
    )


def watched() -> bool:
    """Return whether an export, a trace, a transform or a mode asks how results are made, operation by operation."""
    if torch.compiler.is_exporting() or transformed():
        return True
    return not compiling() and bool(torch._C._get_tracing_state() or torch._C._len_torch_dispatch_stack())


def compiling() -> bool:
    """Return whether `torch.compile` reads this code: then what it cannot read must be an operation of torch."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def find_kernel(implementation: Implementation, transform: Transform, routing: Routing) -> Kernel | None:
    """Return the kernel for a layer, or None where its steps are plain.

    Args:
        implementation: "auto" takes the kernel where one fits, "plain" none, "fused" demands one.
        transform, routing: of the layer.

    Raises:
        ValueError: for another implementation, and for "fused" where no kernel fits; it says why.
    """
    check_choice("implementation", implementation, ("auto", "plain", "fused"))
    if implementation == "plain":
        return None
    kernel = None if transform.makes is None else _KERNELS.get((transform.makes, type(routing)))
    if kernel is None:
        votes = "votes of their own" if transform.makes is None else transform.makes.__name__
        reason = f"there is no kernel for {type(routing).__name__} on {votes}"
    else:
        reason = kernel.supports(transform, routing)
    if kernel is not None and reason is None and not torch.cuda.is_available():  # else a CPU may never be asked
        try_numba()
    if kernel is not None and reason is None and not DEVICES:
        reason = _FAULTS.get("cpu", "neither numba nor Triton is installed, which compile the kernels")
        if implementation == "auto":
            say_plain()
    if kernel is not None and reason is None:
        if "cpu" not in DEVICES:
            say_plain()
        return kernel
    if implementation == "fused":
        raise ValueError(f"implementation is 'fused', but {reason}; use 'auto' or 'plain'")
    return None


@cache
def try_numba() -> None:
    """Take a CPU from `DEVICES` where numba is installed and does not serve; looked at once a process."""
    if "cpu" not in DEVICES:
        return
    try:
        from numba import config

        idle = getattr(config, "DISABLE_JIT", False)
        fault = "NUMBA_DISABLE_JIT has numba compile nothing" if idle else None
    except Exception as error:  # of a damaged file, or beside a NumPy that it does not know, anything
        fault = f"numba cannot be imported ({type(error).__name__}: {error})"
    if fault is not None:
        DEVICES.difference_update(("cpu", "meta"))
        _FAULTS.update(cpu=fault, meta=fault)


@cache
def say_plain() -> None:
    """Warn, once a process, that layers on a CPU are slower than they could be."""
    missing = "numba is not installed (it has no wheel for every Python and system)"
    cure = "" if "cpu" in _FAULTS else "; pip install numba"
    warnings.warn(
        f"torchcaps: {_FAULTS.get('cpu', missing)}, so capsule layers on a CPU "
        f"take plain steps: the same results, several times as slow{cure}",
        stacklevel=2,
    )


def say_missing(device: str, demanded: bool) -> None:
    """Say that kernels are missing on a kind of device, where steps run now: of CUDA once a process, as a warning.

    Raises:
        ValueError: where they are demanded.
    """
    if device == "meta" or transformed() or torch.compiler.is_exporting():
        return
    if demanded:
        raise ValueError(f"implementation is 'fused', but {lacks(device)}; use 'auto' or 'plain'")
    if device == "cuda" and not compiling():  # a graph cannot say it
        _say_plain_on_cuda()


def lacks(device: str) -> str:
    """Return why no kernel runs on a kind of device that is not among `DEVICES`."""
    if device in _FAULTS:
        return _FAULTS[device]
    needed = [name for name in COMPILERS.get(device, ()) if find_spec(name) is None]
    if not needed:
        return f"there are no kernels for {device}"
    return f"{' and '.join(needed)} {'is' if len(needed) == 1 else 'are'} not installed, which kernels on {device} take"


@cache
def _say_plain_on_cuda() -> None:
    warnings.warn(
        f"torchcaps: {lacks('cuda')}, so capsule layers take plain steps there: the same results, more slowly; torch "
        "brings Triton on Linux, and on Windows pip install triton-windows does",
        stacklevel=2,
    )


def runs_fused(votes: Votes) -> bool:
    """Return whether a fused step can be taken now.

    That is on a device that kernels have, not in a graph made for elsewhere, and not where `torch.func` or forward mode
    must see inside: to them an operation's derivative would be 0.
    """
    return votes.device.type in DEVICES and not torch.compiler.is_exporting() and not transformed()
