"""Singular values of a routing's Jacobian: by how much a change of the votes can change the parents, and by how little.

Zhao, Wang and Huang 2020, section 3.2: training is stable where the singular values of d a_j / d v_j|i stay near one,
which dividing by n and votes of length one are to see to.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from torchcaps.capsules import Capsules, lengths, widen
from torchcaps.inspect.couplings import visiting
from torchcaps.inspect.pairs import fm_votes
from torchcaps.layers import CapsuleLayer
from torchcaps.models import Model
from torchcaps.names import check_choice
from torchcaps.routing import Routing, Step
from torchcaps.routing.fm import FM
from torchcaps.votes import LinearVotes

Of = Literal["activations", "poses"]


class Singular(NamedTuple):
    """Of one layer, for each image."""

    layer: str  # name of the stack in the model, and the layer in the stack
    largest: Tensor  # [b]
    smallest: Tensor  # [b]


def measure_jacobian(model: Model, images: Tensor, count: int = 4, of: Of = "activations") -> list[Singular]:
    """Return the largest and the smallest singular value of each layer's d parents / d votes, bottom first.

    The votes are those that the routing's sums take in: after batch norm, and of FM agreement after the normalisation
    to length one, as in Eq. 7. `model` may be measured between two steps of training: it and torch's random numbers are
    left as they are, and a copy in training mode sees `images`, so that batch norm has their statistics.

    Args:
        model: with `CapsuleStack`s; layers whose parents have positions are left out.
        images: [b, c, h, w], as many as in a batch of training.
        count: images, the first ones, whose Jacobian is taken.
        of: "activations" (lengths, where a routing gives none) has a row for each parent; "poses" one for each element
            of each parent, of FM the raw s.

    Raises:
        ValueError: for a count below 1 and another `of`.
    """
    check_choice("of", of, ("activations", "poses"))
    if count < 1:
        raise ValueError(f"count is {count}; the Jacobian of at least 1 image is taken")
    below: dict[str, tuple[CapsuleLayer, Capsules, int]] = {}

    def visit(name: str, layer: CapsuleLayer, children: Capsules, t: int, step: Step) -> None:
        if step.capsules.poses.ndim == 3:
            below[name] = layer, children, t + 1

    model = copy.deepcopy(model).train()
    with torch.random.fork_rng([images.device] if images.device.type == "cuda" else []):  # as dropout draws
        with torch.no_grad(), visiting(model, visit):
            model(images)
        return _measure(below, count, of)


def _measure(below: Mapping[str, tuple[CapsuleLayer, Capsules, int]], count: int, of: Of) -> list[Singular]:
    """Return what `measure_jacobian` says of layers with their children and iterations."""
    found = []
    for name, (layer, children, iterations) in below.items():
        routing, votes, activations = _taken_in(layer, children)
        together = any(True for _ in routing.buffers())  # it has statistics of all images, as in training
        if not together:
            votes, activations = votes[:count], None if activations is None else activations[:count]
        rows = _jacobian(routing, votes, activations, iterations, of, count if together else None)
        values = torch.linalg.svdvals(rows)  # [b, n]
        found.append(Singular(name, values[:, 0], values[:, -1]))
    return found


@torch.no_grad()
def _taken_in(layer: CapsuleLayer, children: Capsules) -> tuple[Routing, Tensor, Tensor | None]:
    """Return a routing, the votes [b, i, j, d] that it is to be given so that it does what `layer` does, and
    activations.
    """
    routing, votes = layer.routing, layer.votes(children)
    activations = None if votes.activations is None else votes.activations.squeeze(1)  # [b, i]
    if not isinstance(routing, FM):
        return routing, votes.dense().squeeze(1), activations
    raw = FM(routing.sizes, l2=False, mean=routing.mean, halved=routing.halved, batch_norm=None)
    return raw, fm_votes(layer, children), activations


def _jacobian(
    routing: Routing, votes: Tensor, activations: Tensor | None, iterations: int, of: Of, first: int | None
) -> Tensor:
    """Return d outputs / d votes of each image, [b, outputs, (i j d)], at votes [b, i, j, d]; where images are routed
    together of the `first` alone: what an image's own votes do.
    """
    leaf = widen(votes).requires_grad_()
    with torch.enable_grad():
        given = given_votes(leaf, activations)
        step = routing.step(given, routing.start(given), 0)
        for t in range(1, iterations):
            step = routing.step(given, step.state, t)
        poses, active = step.capsules
        outputs = poses if of == "poses" else lengths(poses) if active is None else active
        flat = outputs.flatten(1)
        if first is not None:
            rows = [
                torch.stack([torch.autograd.grad(one, leaf, retain_graph=True)[0][n].flatten() for one in flat[n]])
                for n in range(min(first, len(flat)))
            ]
            return torch.stack(rows)
        rows = [torch.autograd.grad(one, leaf, retain_graph=True)[0].flatten(1) for one in flat.sum(0)]
    return torch.stack(rows, 1)


def given_votes(votes: Tensor, activations: Tensor | None = None) -> LinearVotes:
    """Return `Votes` that are `votes` [b, i, j, d]: children that hold their votes, and a transform that picks one
    of them.
    """
    _, children, parents, pose = votes.shape
    pick = torch.eye(parents * pose, dtype=votes.dtype, device=votes.device).unflatten(1, (parents, pose))
    weight = pick.movedim(1, 0).unsqueeze(1).expand(-1, children, -1, -1)  # [j, i, (j d), d]
    return LinearVotes(Capsules(votes.flatten(2), activations), weight)
