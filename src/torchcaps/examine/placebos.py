"""Placebos: the network with couplings that its routing did not choose, after training.

Paik, Kwak and Kim (2019) found that routing seldom changes the class, and Gu and Tresp (2020) that networks do as well
without. A network whose answers stay the same with somebody else's couplings does not use its routing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from torchcaps.examine.found import ONE, OTHER, RANDOM, SAME, UNIFORM, Placebo
from torchcaps.examine.sample import Sample, take
from torchcaps.layers import CapsuleLayer, CapsuleStack
from torchcaps.layers.layer import plain_steps
from torchcaps.models import Model
from torchcaps.routing import Routing
from torchcaps.votes import Votes

Exchange = Callable[[str, Routing, Votes, Tensor | None, int], Tensor | None]


def stacks_of(model: Model) -> dict[str, CapsuleStack]:
    """Return the capsule stacks of `model`, by name."""
    return {name: each for name, each in model.named_modules() if isinstance(each, CapsuleStack)}


def coupled_layers(model: Model) -> dict[str, CapsuleLayer]:
    """Return the routed layers of `model` that share children out by couplings, by the names of stack and layer."""
    return {
        f"{name}.{level}": layer
        for name, stack in stacks_of(model).items()
        for level, layer in enumerate(stack.layers)
        if isinstance(layer, CapsuleLayer) and layer.routing.spec.couplings
    }


@contextmanager
def coupled(model: Model, exchange: Exchange) -> Iterator[None]:
    """Have every coupling in `model` be what `exchange(layer, routing, votes, coupling, t)` makes of it."""
    layers = coupled_layers(model)

    def put(name: str, routing: Routing) -> None:
        own = routing.couple

        def couple(votes: Votes, state: object, t: int) -> Tensor | None:
            return exchange(name, routing, votes, own(votes, state, t), t)

        object.__setattr__(routing, "couple", couple)

    with plain_steps(model):
        try:
            for name, layer in layers.items():
                put(name, layer.routing)
            yield
        finally:
            for layer in layers.values():
                vars(layer.routing).pop("couple", None)


@contextmanager
def iterated(model: Model, iterations: int) -> Iterator[None]:
    """Have every capsule stack in `model` make so many iterations."""
    before = [(each, each.iterations) for each in stacks_of(model).values()]
    try:
        for stack, _ in before:
            stack.iterations = iterations
        yield
    finally:
        for stack, count in before:
            stack.iterations = count


def share_equally(name: str, routing: Routing, votes: Votes, coupling: Tensor | None, t: int) -> Tensor:
    """Return the coupling that makes no difference between those who compete."""
    return routing.compete(votes, None)


def share_at_random(generator: torch.Generator) -> Exchange:
    """Return couplings drawn for each image, child and parent: over the parents uniform on all ways to share a child
    out.
    """

    def exchange(name: str, routing: Routing, votes: Votes, coupling: Tensor | None, t: int) -> Tensor:
        shape = votes.images, math.prod(votes.space), votes.children, votes.parents
        drawn = torch.empty(shape, dtype=torch.float64).exponential_(generator=generator)
        logits = drawn.clamp_min(torch.finfo(drawn.dtype).tiny).log().to(votes.device, torch.float32)
        return routing.compete(votes, logits)

    return exchange


def measure_placebos(model: Model, sample: Sample, seed: int = 0) -> list[Placebo]:
    """Return the accuracy, and the share of changed answers, of the same network with couplings of other kinds.

    - one iteration: R = 1, where there are more and the routing is iterative;
    - uniform: children are shared out equally, in every layer and iteration;
    - random: by couplings drawn for each image, child and parent, uniformly on all ways to share a child out;
    - of another image, of the same class and of another one: its couplings of each layer and iteration, where the
      sample holds such an image. They are recorded as it is classified by itself.

    Args:
        model: in evaluation mode, with couplings; other layers stay as they are.
        sample: the images.
        seed: of the random couplings.
    """
    own, found = sample.answers(model), []

    def compare(name: str, answers: Tensor, rows: Tensor | None = None) -> None:
        rows = torch.arange(len(own)) if rows is None else rows
        if len(rows):
            right = (answers == sample.targets[rows]).all(1).double().mean().item()
            changed = (answers != own[rows]).any(1).double().mean().item()
            found.append(Placebo(name, right, changed, len(rows)))

    iterative = any(each.routing.spec.iterative for each in coupled_layers(model).values())
    if iterative and any(stack.iterations > 1 for stack in stacks_of(model).values()):
        with iterated(model, 1):
            compare(ONE, sample.answers(model))
    with coupled(model, share_equally):
        compare(UNIFORM, sample.answers(model))
    with coupled(model, share_at_random(torch.Generator().manual_seed(seed))):
        compare(RANDOM, sample.answers(model))
    for name, donors in zip((SAME, OTHER), find_donors(sample.targets), strict=True):
        rows = (donors >= 0).nonzero().flatten()
        compare(name, answer_by_couplings_of(model, sample, rows, donors[rows]), rows) if len(rows) else None
    return found


def find_donors(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each image the next one that shows the same, and the next that shows something else, int64 [n]; -1
    where there is none.

    Args:
        targets: bool [n, classes].
    """
    _, kind, sizes = targets.unique(dim=0, return_inverse=True, return_counts=True)
    n = len(kind)
    order, same = kind.argsort(stable=True), torch.full((n,), -1)
    for rows in order.split(sizes.tolist()):  # of one kind, ascending; the last is followed by the first
        if len(rows) > 1:
            same[rows] = rows.roll(-1)
    if len(sizes) < 2:
        return same, torch.full((n,), -1)
    ends = kind != kind.roll(-1)  # an image behind which another kind begins
    place = torch.arange(2 * n)  # twice round
    following = torch.where(ends.repeat(2), place, 2 * n).flip(0).cummin(0).values.flip(0)[:n]  # the next of them
    return same, (following + 1) % n


@torch.no_grad()
def answer_by_couplings_of(model: Model, sample: Sample, rows: Tensor, donors: Tensor) -> Tensor:
    """Return what `model` says of the images `rows` [n] with the couplings of the images `donors` [n]: bool [n,
    classes].
    """
    answers = []
    for (images, _), (others, _) in zip(sample.stream(rows), sample.stream(donors), strict=True):
        kept: dict[tuple[str, int], Tensor | None] = {}

        def keep(name: str, routing: Routing, votes: Votes, coupling: Tensor | None, t: int, kept=kept):
            kept[name, t] = coupling
            return coupling

        def give(name: str, routing: Routing, votes: Votes, coupling: Tensor | None, t: int, kept=kept):
            return kept[name, t]

        with coupled(model, keep):
            take(model, others)
        with coupled(model, give):
            answers.append(sample.predict(take(model, images).scores))
    return torch.cat(answers)
