"""Properties that any routing must have, for those who write one: `check_routing`. It needs nothing but torchcaps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, LinearTransform
from torchcaps.routing import Routing
from torchcaps.routing.interface import Sizes

# Sizes that all differ, so that a dimension of a parameter tells what it counts.
BATCH, CHILDREN, PARENTS, POSE, CHILD_POSE = 2, 7, 3, 5, 4
HELD = 0.6  # of the votes' size, what may be held for backward
Oracle = Callable[[np.ndarray, np.ndarray | None, int], np.ndarray]


def check_routing(cls: Callable[[Sizes], Routing], oracle: Oracle | None = None, iterations: int = 3) -> list[str]:
    """Check that a routing has the properties that the library's own have; returns the names of those checked.

    Args:
        cls: a subclass of `Routing`, or a function of `Sizes` that makes one, such as a `functools.partial`.
        oracle: the same algorithm by plain loops in numpy, of votes [b, i, j, d], the children's activations [b, i] (or
            None where the routing needs none) and the number of iterations; it gives the parents' poses [b, j, d].
        iterations: of the routing; one that is not iterative makes one.

    Raises:
        AssertionError: for the first property that does not hold; names it.
    """
    made = cls(Sizes(CHILDREN, PARENTS, POSE))
    iterations = iterations if made.spec.iterative else 1
    checks: dict[str, Callable[[], None]] = {
        "shapes": lambda: _check_shapes(cls, iterations),
        "permutations": lambda: _check_permutations(cls, iterations),
        "extremes": lambda: _check_extremes(cls, iterations),
        "dtypes": lambda: _check_dtypes(cls, iterations),
        "compile": lambda: _check_compile(cls, iterations),
        "export": lambda: _check_export(cls, iterations),
        "memory": lambda: _check_memory(cls, iterations),
    }
    if oracle is not None:
        checks = {"oracle": lambda: _check_oracle(cls, oracle, iterations)} | checks
    if made.spec.exact_gradient:
        checks["gradients"] = lambda: _check_gradients(cls, iterations)
        checks["derivatives"] = lambda: _check_derivatives(cls, iterations)
    for name, check in checks.items():
        try:
            check()
        except Exception as error:
            raise AssertionError(f"{name} of {made.spec.name!r}: {error}") from error
    return list(checks)


class _Alone(nn.Module):
    """One layer, of poses and activations to the parents' poses."""

    def __init__(self, layer: CapsuleLayer, iterations: int):
        super().__init__()
        self.layer, self.iterations = layer, iterations

    def forward(self, poses: Tensor, activations: Tensor) -> Tensor:
        return self.layer(Capsules(poses, activations), self.iterations).capsules.poses


def _layer(cls: Callable[[Sizes], Routing], dtype: torch.dtype = torch.float64) -> CapsuleLayer:
    """Return a layer by plain steps, whose every parameter is random, so that no term hides behind a zero."""
    torch.manual_seed(0)
    transform = LinearTransform(CHILDREN, PARENTS, CHILD_POSE, POSE)
    layer = CapsuleLayer(transform, cls(transform.sizes), implementation="plain")
    for weight in layer.routing.parameters():  # pyright: ignore[reportAttributeAccessIssue]
        nn.init.normal_(weight, mean=0.3, std=0.5)
    return layer.to(dtype)


def _children(dtype: torch.dtype = torch.float64) -> Capsules:
    generator = torch.Generator().manual_seed(1)
    poses = torch.randn(BATCH, CHILDREN, CHILD_POSE, generator=generator, dtype=torch.float64)
    return Capsules(poses.to(dtype), torch.rand(poses.shape[:2], generator=generator, dtype=torch.float64).to(dtype))


def _close(found: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    gap = (found.double() - wanted.double()).abs().max().item()
    if not gap <= tolerance * (1 + wanted.double().abs().max().item()):
        raise AssertionError(f"{what} differ by {gap:.3g}")


def _check_shapes(cls: Callable[[Sizes], Routing], iterations: int) -> None:
    layer = _layer(cls)
    spec = layer.routing.spec  # pyright: ignore[reportAttributeAccessIssue]
    poses, activations = layer(_children(), iterations).capsules
    wanted = [BATCH, PARENTS, POSE - spec.hidden]
    if list(poses.shape) != wanted:
        raise AssertionError(f"parents are {list(poses.shape)}, not [b, j, d] = {wanted}")
    if (activations is not None) != spec.gives_activations:
        raise AssertionError(f"spec.gives_activations is {spec.gives_activations}, which is not so")


def _check_oracle(cls: Callable[[Sizes], Routing], oracle: Oracle, iterations: int) -> None:
    layer, children = _layer(cls), _children()
    votes = layer.votes(children).dense()[:, 0].detach().numpy()  # [b, i, j, d]
    needs = layer.routing.spec.needs_activations  # pyright: ignore[reportAttributeAccessIssue]
    assert children.activations is not None
    for count in {1, iterations}:
        wanted = oracle(votes, children.activations.numpy() if needs else None, count)
        _close(layer(children, count).capsules.poses.detach(), torch.from_numpy(np.asarray(wanted)), 1e-8, "parents")


def _check_permutations(cls: Callable[[Sizes], Routing], iterations: int) -> None:
    """Check that the order of children does not matter, and that of the parents only to the parents."""
    layer, children = _layer(cls).eval(), _children()
    children_order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    parents_order = torch.tensor([2, 0, 1])
    moved = copy.deepcopy(layer)
    weight: Any = moved.transform.weight  # [j, i, ...]
    weight.data = weight.data[parents_order][:, children_order]
    for value in moved.routing.state_dict().values():  # pyright: ignore[reportAttributeAccessIssue]
        for axis, size in enumerate(value.shape):
            if size in (CHILDREN, PARENTS):
                order = children_order if size == CHILDREN else parents_order
                value.copy_(value.index_select(axis, order))
    assert children.activations is not None
    shuffled = Capsules(children.poses[:, children_order], children.activations[:, children_order])
    before, after = layer(children, iterations).capsules.poses, moved(shuffled, iterations).capsules.poses
    _close(after, before[:, parents_order], 1e-9, "parents of children in another order")


def _check_extremes(cls: Callable[[Sizes], Routing], iterations: int) -> None:
    """Check that children of no length, of nearly none, and very long ones leave all numbers finite, gradients too."""
    for size in (0.0, 1e-20, 1e4):
        layer, children = _layer(cls, torch.float32), _children(torch.float32)
        poses = (children.poses * size).requires_grad_()
        parents = layer(Capsules(poses, children.activations), iterations).capsules.poses
        parents.sum().backward()
        found = [parents, poses.grad, *(weight.grad for weight in layer.parameters())]
        if not all(each is None or bool(each.isfinite().all()) for each in found):
            raise AssertionError(f"children of size {size:g} give parents or gradients that are not finite")


def _check_dtypes(cls: Callable[[Sizes], Routing], iterations: int) -> None:
    wanted = _layer(cls)(_children(), iterations).capsules.poses.detach()
    single = _layer(cls, torch.float32)
    found = single(_children(torch.float32), iterations).capsules.poses.detach()
    if found.dtype != torch.float32:
        raise AssertionError(f"children in float32 give parents in {found.dtype}")
    _close(found, wanted, 1e-3, "parents in float32 and float64")
    with torch.autocast("cpu", torch.bfloat16):
        half = single(_children(torch.float32), iterations).capsules.poses.detach()
    _close(half, wanted, 0.3, "parents under bf16 autocast and in float64")


def _check_compile(cls: Callable[[Sizes], Routing], iterations: int) -> None:
    module, children = _Alone(_layer(cls), iterations).eval(), _children()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    _close(compiled(*children), module(*children), 1e-10, "parents of the compiled layer")
    torch.compiler.reset()


def _check_export(cls: Callable[[Sizes], Routing], iterations: int) -> None:
    module, children = _Alone(_layer(cls, torch.float32), iterations).eval(), _children(torch.float32)
    assert children.activations is not None
    program = torch.export.export(module, (children.poses, children.activations))
    _close(program.module()(*children), module(*children), 1e-5, "parents of the exported layer")


def _check_gradients(cls: Callable[[Sizes], Routing], iterations: int) -> None:
    module, children = _Alone(_layer(cls), iterations), _children()
    inputs = [each.clone().requires_grad_() for each in children if each is not None]
    torch.autograd.gradcheck(module, inputs, fast_mode=True, atol=1e-5)


def _check_derivatives(cls: Callable[[Sizes], Routing], iterations: int) -> None:
    """Check that derivatives in forward mode, as `torch.func.jvp` takes them, are those of backward."""
    module, children = _Alone(_layer(cls), iterations).eval(), _children()
    assert children.activations is not None
    activations = children.activations
    direction = torch.ones_like(children.poses)

    def function(poses: Tensor) -> Tensor:
        return module(poses, activations)

    forward = torch.func.jvp(function, (children.poses,), (direction,))[1]
    pull = torch.func.vjp(function, children.poses)[1]
    weights = torch.randn(forward.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    back = (pull(weights)[0] * direction).sum()
    _close((forward * weights).sum(), back, 1e-7, "derivatives in forward mode and backward")


def _check_memory(cls: Callable[[Sizes], Routing], iterations: int) -> None:
    """Check that the state is sized like the parents, and what is held for backward is less than the votes."""
    children, parents, pose, batch = 96, 8, 16, 16
    transform = LinearTransform(children, parents, CHILD_POSE, pose)
    layer = CapsuleLayer(transform, cls(transform.sizes), implementation="plain")
    poses = torch.randn(batch, children, CHILD_POSE, requires_grad=True)
    known = {each.untyped_storage().data_ptr() for each in (poses, *layer.parameters())}
    with _held(known) as held:
        step = layer(Capsules(poses, torch.rand(batch, children)), iterations)
    votes = batch * children * parents * pose
    for each in _tensors(step.state):
        if each.numel() >= batch * children * parents:
            raise AssertionError(f"its state has {each.numel():,} numbers, as a coupling: it must be parent-sized")
    if sum(held.values()) > HELD * votes:
        share = sum(held.values()) / votes
        raise AssertionError(f"it holds {share:.2f} of the votes' size for backward; at most {HELD} is meant")


@contextmanager
def _held(known: set[int]) -> Iterator[dict[int, int]]:
    """Return numbers that autograd holds, by their memory, but for those `known`."""
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in known:
            held[place] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield held


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, list | tuple):
        for each in state:
            yield from _tensors(each)
