"""Routing made visible: how much of each part went to which parent, iteration by iteration, over the input.

Everything is read through `CapsuleStack.forward(visit=...)`, so it holds for every routing that has couplings.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from torchcaps.capsules import Capsules, lengths
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, PooledTransform
from torchcaps.models import Model, Output
from torchcaps.models.smaller import SelectedTransform
from torchcaps.routing import Step

Visit = Callable[[str, CapsuleLayer, Capsules, int, Step], None]


class Box(NamedTuple):
    """Where a grid of children lies in the input, in shares of its height and width; it may reach beyond it."""

    top: float = 0.0
    left: float = 0.0
    height: float = 1.0
    width: float = 1.0


@dataclass(frozen=True)
class RoutedLayer:
    """What one layer of capsules did with its children."""

    name: str  # of the stack in the model, and the layer in the stack
    routing: str  # its registered name
    maps: Tensor  # [t, b, j, h, w], see `share_maps`; children without positions stand in one row
    strength: Tensor  # [t, b, j], of the parents: activation or length, averaged over positions
    given: Tensor  # [t, b, h, w], what a place has to give: its children's activations or lengths, summed
    box: Box | None  # None: the children have no positions
    top: bool  # whether the parents are the classes


@contextmanager
def visiting(model: Model, visit: Visit) -> Iterator[None]:
    """Have every capsule stack in `model` show its steps: `visit(name, layer, children, t, step)`."""

    def show(name: str, stack: CapsuleStack) -> Callable[..., tuple[tuple, dict]]:
        def before(_: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            below = {0: args[0] if args else kwargs["children"]}

            def see(level: int, t: int, step: Step) -> None:
                layer = stack.layers[level]
                assert isinstance(layer, CapsuleLayer)
                visit(f"{name}.{level}", layer, below[level], t, step)
                below[level + 1] = step.capsules

            return args, kwargs | {"visit": see}

        return before

    stacks = [(name, each) for name, each in model.named_modules() if isinstance(each, CapsuleStack)]
    handles = [each.register_forward_pre_hook(show(name, each), with_kwargs=True) for name, each in stacks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def trace_routing(model: Model, images: Tensor) -> list[RoutedLayer]:
    """Return how each routed layer of `model` shares its children out, bottom first; none for a model without capsules.

    Layers are left out whose routing has no couplings, keeps none to look at, or takes no step but the first, where all
    get the same: with two iterations of a concurrent stack these are all but the top one. So are those whose windows
    are scrambled, where no coupling is that of a place.

    Args:
        model: it is left in evaluation mode.
        images: [b, c, h, w], as the model takes them.
    """
    with torch.no_grad():
        layers = watch_routing(model.eval(), images)[1]
    boxes = locate_children(model, images)
    return [replace(layer, box=boxes.get(layer.name)) for layer in layers]


def watch_routing(model: Model, images: Tensor) -> tuple[Output, list[RoutedLayer]]:
    """Return the output of `model` for images [b, c, h, w], and what `trace_routing` says of its layers, without their
    boxes.

    It is made of operations of torch alone, so that it can be exported.
    """
    found: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
    seen: dict[str, str] = {}
    last: dict[str, Capsules] = {}
    routed: set[str] = set()

    def visit(name: str, layer: CapsuleLayer, children: Capsules, t: int, step: Step) -> None:
        spec, transform = layer.routing.spec, layer.transform
        last[name] = step.capsules
        if not spec.couplings or (step.coupling is None and t > 0):
            return
        if isinstance(transform, ConvTransform) and (transform.scrambled or transform.dims == 1):
            return
        given = _weigh(children).sum(1)
        found[name].append((share_maps(layer, children, step), _presence(step.capsules), given))
        seen[name] = spec.name
        if step.coupling is not None:
            routed.add(name)

    with visiting(model, visit):
        output = model(images)
    layers = [
        RoutedLayer(
            name,
            seen[name],
            *(torch.stack(each) for each in zip(*steps, strict=True)),
            box=None,
            top=are_classes(last[name], output),
        )
        for name, steps in found.items()
        if name in routed
    ]
    return output, layers


def are_classes(capsules: Capsules, output: Output) -> bool:
    """Return whether `capsules` are those of the classes: the last of `output`, one for each of its scores."""
    poses = output.capsules[-1].poses if output.capsules else None
    return capsules.poses is poses and capsules.poses.shape[:-1] == output.scores.shape


def share_maps(layer: CapsuleLayer, children: Capsules, step: Step) -> Tensor:
    """Return, of what each place of the children gave, the share that went to each parent: [b, j, h, w], in [-1, 1].

    The share of a child is its coupling to the parent, summed over the windows that see it, over the sum of the sizes
    of all its couplings; a place is the mean of its children, weighted by their activations or, where they have none,
    the lengths of their poses. Shares of a place add up to 1 unless couplings are negative. No coupling is a uniform
    one; where no window sees a place, its shares are equal too. Parents of one kind at several positions count as one.
    Children without positions stand in one row; those of a type that are pooled all have the share of their mean.
    """
    poses = children.poses
    b, *space, _, _ = poses.shape
    coupling, j = step.coupling, layer.transform.sizes.parents
    positions = step.capsules.poses.shape[1:-2].numel()
    if coupling is None:
        coupling = poses.new_full((), 1 / j)
    coupling = coupling.expand(b, positions, layer.transform.sizes.children, j).to(torch.float32)
    if isinstance(layer.transform, ConvTransform):
        given, size, windows = (
            _unwindow(each, layer.transform, (space[0], space[1]))
            for each in (coupling, coupling.abs().sum(-1, keepdim=True), torch.ones_like(coupling[:1, :, :, :1]))
        )
    else:
        height, width = (1, *space)[-2:] if space else (1, poses.shape[1])  # a sequence is one row
        flat = coupling.squeeze(1).movedim(-1, 1)  # [b, j, i], children as (capsule, height, width)
        if isinstance(layer.transform, SelectedTransform):
            flat = layer.transform.among_all(flat)
        if space and isinstance(layer.transform, PooledTransform):
            flat = flat.repeat_interleave(height * width, 2)
        given = flat.unflatten(2, (-1, height, width))
        size = given.abs().sum(1, keepdim=True)
        windows = torch.ones_like(size)
    shares = given / size.clamp_min(torch.finfo(size.dtype).tiny)  # [b, j, i, h, w]
    shares = torch.where(windows > 0, shares, 1 / j)
    weight = (_weigh(children) + 1e-6).unsqueeze(1)  # a place of silent children is their plain mean
    return (shares * weight).sum(2) / weight.sum(2)


def _weigh(children: Capsules) -> Tensor:
    """Return the size of activation or length of each child, by place: [b, i, h, w]; those without positions stand in
    one row, [b, 1, 1, i], and so do the places of a sequence.
    """
    weight = lengths(children.poses) if children.activations is None else children.activations  # [b, *space, i]
    weight = weight.float().abs()
    if weight.ndim == 2:
        return weight[:, None, None, :]
    return (weight if weight.ndim == 4 else weight.unsqueeze(1)).movedim(-1, 1)


def _unwindow(coupling: Tensor, transform: ConvTransform, space: tuple[int, int]) -> Tensor:
    """Sum over the windows that see a child: [b, p, (kh kw i), j] -> [b, j, i, h, w]."""
    _, kernel, _, children = transform.shape[:4]
    b, _, _, j = coupling.shape
    windows = coupling.unflatten(2, (kernel * kernel, children)).permute(0, 4, 3, 2, 1)  # [b, j, i, k, p]
    folded = F.fold(
        windows.reshape(b * j, children * kernel * kernel, -1),
        space,
        kernel,
        padding=transform.padding,
        stride=transform.stride,
    )
    return folded.unflatten(0, (b, j))


def _presence(parents: Capsules) -> Tensor:
    """Return activation or length of each kind of parent, [b, j]."""
    there = lengths(parents.poses) if parents.activations is None else parents.activations
    return there.flatten(1, -2).mean(1).float() if there.ndim > 2 else there.float()


def locate_children(model: Model, images: Tensor) -> dict[str, Box]:
    """Return where the children of each routed layer lie in the input, by the gradient of those in two corners.

    The middles of the fields that the first and the last child see span the grid; what the border cuts off a field is
    counted in, by the size of the field of a child between them. Where a field is the whole side, the grid is taken to
    be the image.
    """
    children: dict[str, Capsules] = {}

    def visit(name: str, layer: CapsuleLayer, below: Capsules, t: int, step: Step) -> None:
        if below.poses.ndim == 5:
            children.setdefault(name, below)

    images = images[:4].detach().requires_grad_()
    with torch.enable_grad(), visiting(model.eval(), visit):
        model(images)
        return {name: _box(below.poses, images) for name, below in children.items()}


def _box(poses: Tensor, images: Tensor) -> Box:
    """Return the box of children [b, h, w, i, d] that were computed of `images`."""
    fields = []
    for row, column in ((0, 0), (poses.shape[1] // 2, poses.shape[2] // 2), (-1, -1)):
        (gradient,) = torch.autograd.grad(poses[:, row, column].sum(), images, retain_graph=True, allow_unused=True)
        if gradient is None:
            return Box()
        fields.append(gradient.abs().sum((0, 1)) > 0)  # [h, w]
    spans = []
    for axis in (0, 1):
        side, count = images.shape[2 + axis], poses.shape[1 + axis]
        ends = [field.any(1 - axis).nonzero().flatten() for field in fields]
        if any(len(end) in (0, side) for end in ends) or count == 1:
            spans.append((0.0, 1.0))
            continue
        size = max((end[-1] - end[0] + 1).item() for end in ends)
        first, last = (ends[0][-1].item() + 1 - size / 2) / side, (ends[-1][0].item() + size / 2) / side
        step = (last - first) / (count - 1)
        spans.append((first - step / 2, step * count))
    (top, height), (left, width) = spans
    return Box(top, left, height, width)
