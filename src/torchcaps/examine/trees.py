"""Parse trees: which child goes to the class that wins, and how many such trees a class has.

Renzulli's REM counts them: couplings of the winning class, in eleven bins, are a tree; a class whose images all have
trees of their own has no parse tree at all.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import torch

from torchcaps.capsules import Capsules
from torchcaps.examine.capsules import shares_of
from torchcaps.examine.found import Trees
from torchcaps.examine.sample import Sample, take
from torchcaps.inspect.couplings import visiting
from torchcaps.layers import CapsuleLayer
from torchcaps.models import Model
from torchcaps.routing import Step

BINS = 11  # 0, 0.1, ..., 1


@torch.no_grad()
def measure_trees(model: Model, sample: Sample) -> list[Trees]:
    """Return how many distinct parse trees each class has that images are taken for, and the entropy of their
    distribution.

    A tree is the share of each child that goes to the class that wins, at the last iteration of the layer of class
    capsules, rounded to a tenth. None without such a layer, or where it has no couplings.

    Args:
        model: in evaluation mode.
        sample: the images; of several classes in one, the likeliest wins.
    """
    last: list[tuple[CapsuleLayer, Step]] = []

    def visit(name: str, layer: CapsuleLayer, children: Capsules, t: int, step: Step) -> None:
        last[:] = [(layer, step)]

    trees: dict[int, Counter[bytes]] = defaultdict(Counter)
    for images, _ in sample.stream():
        last.clear()
        with visiting(model, visit):
            output = take(model, images)
        if not last or not output.capsules or output.capsules[-1].poses is not last[0][1].capsules.poses:
            return []
        layer, step = last[0]
        if not layer.routing.spec.couplings or layer.transform.sizes.parents != len(sample.classes):
            return []
        winner = output.scores.argmax(1).cpu()
        shares = shares_of(layer, step)  # [b, p, i, j]
        won = shares.flatten(1, 2).gather(2, winner[:, None, None].expand(-1, shares.shape[1:3].numel(), 1))
        places = (won.squeeze(2) * (BINS - 1)).round().to(torch.uint8)
        for number, tree in zip(winner.tolist(), places, strict=True):
            trees[number][tree.numpy().tobytes()] += 1
    return [_summarise(sample.classes[number], trees[number]) for number in sorted(trees)]


def _summarise(shown: str, trees: Counter[bytes]) -> Trees:
    images = trees.total()
    entropy = -sum(count / images * math.log2(count / images) for count in trees.values())
    return Trees(shown, images, len(trees), max(0.0, entropy))
