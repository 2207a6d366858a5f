"""Which children agree: the products of two votes that FM agreement sums, over the image or on a circle.

FM has no coupling to look at. Its activation a_j is the sum over all pairs of children of v_i1j . v_i2j / n (Zhao et
al. 2020, Eq. 5 to 8), so the pairs with the largest products say which two parts made a parent (figure 1): where they
stand in the image or, below the classes of a deep network, where parts stand nowhere, which capsules they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torchcaps.capsules import Capsules, widen
from torchcaps.inspect.couplings import Box, are_classes, locate_children, visiting
from torchcaps.layers import CapsuleLayer, PooledTransform
from torchcaps.models import Model
from torchcaps.routing import Step
from torchcaps.routing.fm import FM

BLOCK = 1 << 22  # products that are held at once
RADIUS = 0.4  # of the circle of children without positions, in shares of a picture's side


@dataclass(frozen=True)
class AgreedLayer:
    """The strongest pairs of one layer, of the k parents of each image with the highest activation."""

    name: str  # of the stack in the model, and the layer in the stack
    top: bool  # whether the parents are the classes
    parents: Tensor  # int64 [b, k], the highest first
    activations: Tensor  # [b, k], a_j
    products: Tensor  # [b, k, m], what each pair adds to a_j, the largest first
    places: Tensor  # [b, k, m, 2, 2], row and column of both children, in shares of the image's height and width
    ring: Tensor | None  # [i, 2], of children without positions: the places of all, on a circle; else None


def fm_votes(layer: CapsuleLayer, children: Capsules) -> Tensor:
    """Return the votes [b, i, j, d] that the sums of FM agreement take in: after batch norm, and of length one with
    `l2`.

    Raises:
        ValueError: for a layer whose routing is not FM, or whose parents have positions.
    """
    routing = layer.routing
    if not isinstance(routing, FM):
        raise ValueError(f"routing {routing.spec.name!r} sums no pairs; only 'fm' does")
    votes = layer.votes(children)
    if votes.space:
        raise ValueError("parents have positions; only the votes of linear capsules are taken apart")
    scale, shift = (None, None) if routing.norm is None else routing.norm(votes)
    dense = widen(votes.dense())
    dense = (dense if scale is None else dense * scale) + (0 if shift is None else shift)
    coupling = routing.couple(votes, (scale, shift), 0)
    return (dense if coupling is None else dense * coupling.unsqueeze(-1)).squeeze(1)


def pair_weight(routing: FM) -> float:
    """Return what the product of a pair of votes is multiplied by in a_j."""
    return (1 if routing.halved else 2) / (routing.sizes.children if routing.mean else 1)


@torch.no_grad()
def trace_pairs(model: Model, images: Tensor, parents: int = 4, pairs: int = 12) -> list[AgreedLayer]:
    """Return the strongest pairs of each layer of FM agreement whose children have positions, and of the class layer.

    None for other models, and of a single child. Class capsules of a deep network have children without positions,
    which are put on a circle; so are the types of children that are pooled, of which each stands everywhere.

    Args:
        model: it is left in evaluation mode.
        images: [b, c, h, w], as the model takes them.
        parents: how many of each image are shown, at most.
        pairs: how many of each parent, at most.
    """
    below: dict[str, tuple[CapsuleLayer, Capsules, Capsules]] = {}

    def visit(name: str, layer: CapsuleLayer, children: Capsules, t: int, step: Step) -> None:
        if isinstance(layer.routing, FM) and step.capsules.poses.ndim == 3 and layer.routing.sizes.children > 1:
            below[name] = layer, children, step.capsules

    with visiting(model.eval(), visit):
        output = model(images)
    boxes = locate_children(model, images) if below else {}
    found = []
    for name, (layer, children, above) in below.items():
        placed = children.poses.ndim == 5 and not isinstance(layer.transform, PooledTransform)
        top = are_classes(above, output)
        if not (placed or top):
            continue
        assert above.activations is not None and isinstance(layer.routing, FM)
        best = above.activations.topk(min(parents, above.activations.shape[1]))
        products, both = _strongest(fm_votes(layer, children), best.indices, pairs)
        ring = None if placed else circle(layer.routing.sizes.children).to(products)
        if ring is None:
            height, width = children.poses.shape[1:3]
            places = _places(both, (height, width), boxes[name])
        else:
            places = ring[both]
        found.append(
            AgreedLayer(
                name=name,
                top=top,
                parents=best.indices,
                activations=best.values,
                products=products * pair_weight(layer.routing),
                places=places,
                ring=ring,
            )
        )
    return found


def circle(count: int) -> Tensor:
    """Return row and column [count, 2], in [0, 1], of points on a circle: the first at its top, the others
    clockwise.
    """
    angle = 2 * math.pi / count * torch.arange(count)
    return 0.5 + RADIUS * torch.stack([-angle.cos(), angle.sin()], -1)


def _strongest(votes: Tensor, parents: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    """Return largest products [b, k, m] of two votes [b, i, j, d] for `parents` [b, k], and their children [b, k, m,
    2].
    """
    chosen = votes.movedim(2, 1).gather(1, parents[..., None, None].expand(-1, -1, votes.shape[1], votes.shape[-1]))
    found = [_strongest_of(each, pairs) for each in chosen.flatten(0, 1)]
    products, both = (torch.stack(each).unflatten(0, parents.shape) for each in zip(*found, strict=True))
    return products, both


def _strongest_of(votes: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    """Return largest products [m] of two of the votes [i, d], and which two [m, 2]; a block of rows of products at a
    time.
    """
    count = len(votes)
    pairs = min(pairs, count * (count - 1) // 2)
    best, both = votes.new_empty(0), torch.empty(0, 2, dtype=torch.int64, device=votes.device)
    every = torch.arange(count, device=votes.device)
    for rows in every.split(max(1, BLOCK // count)):
        products = (votes[rows] @ votes.T).masked_fill_(every <= rows[:, None], float("-inf")).flatten()
        top = products.topk(min(pairs, len(products)))
        found = torch.stack([rows[top.indices // count], top.indices % count], -1)
        best, order = torch.cat([best, top.values]).topk(min(pairs, len(best) + len(found)))
        both = torch.cat([both, found])[order]
    return best, both


def _places(children: Tensor, space: tuple[int, int], box: Box) -> Tensor:
    """Return middles [..., 2], row and column, of children that are numbered as (capsule, height, width)."""
    height, width = space
    row, column = children % (height * width) // width, children % width
    down = box.top + box.height * (row + 0.5) / height
    right = box.left + box.width * (column + 0.5) / width
    return torch.stack([down, right], -1)
