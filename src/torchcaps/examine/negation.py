"""Whether a layer of capsules can tell its input from the negative of it (Peer, Stabinger, Rodriguez-Sanchez 2021).

Routing by agreement without a bias gives the negative parents of negative children, and the same lengths: no such layer
can tell the two apart. A `bias` of the routing cures it.
"""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.nn.functional as F

from torchcaps.capsules import Capsules, widen
from torchcaps.examine.capsules import strengths
from torchcaps.examine.found import Negation
from torchcaps.examine.placebos import stacks_of
from torchcaps.examine.sample import Sample, take
from torchcaps.inspect.couplings import visiting
from torchcaps.layers import CapsuleLayer
from torchcaps.models import Model
from torchcaps.routing import Step

LEAST = 1e-12  # length of a pose that has a direction


@torch.no_grad()
def measure_negation(model: Model, sample: Sample) -> list[Negation]:
    """Return f(-x) beside f(x) for each layer of capsules, bottom first: x are the children that the layer gets, f all
    its own iterations, without the layers above; activations of the children stay as they are.

    Args:
        model: in evaluation mode.
        sample: the images.
    """
    below: dict[str, tuple[CapsuleLayer, Capsules]] = {}

    def visit(name: str, layer: CapsuleLayer, children: Capsules, t: int, step: Step) -> None:
        below[name] = layer, children

    rounds = {name: stack.iterations for name, stack in stacks_of(model).items()}
    sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(4, dtype=torch.float64))
    for images, _ in sample.stream():
        below.clear()
        with visiting(model, visit):
            take(model, images)
        for name, (layer, (poses, activations)) in below.items():
            iterations = rounds[name.rpartition(".")[0]]
            plus, minus = (layer(Capsules(each, activations), iterations).capsules for each in (poses, -poses))
            p, m = (widen(each.poses).cpu().double() for each in (plus, minus))
            cosine = F.cosine_similarity(p, m, -1, LEAST)
            there = p.norm(dim=-1).minimum(m.norm(dim=-1)) > LEAST
            a, b = (strengths(each).cpu().double() for each in (plus, minus))
            found = [(cosine * there).sum(), there.sum().double(), (a - b).abs().sum(), a.abs().sum()]
            sums[name] += torch.stack(found)
    return [
        Negation(name, (each[0] / each[1].clamp_min(1)).item(), (each[2] / each[3].clamp_min(LEAST)).item())
        for name, each in sums.items()
    ]
