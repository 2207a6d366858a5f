"""How votes agree with their parents as a network learns: figure 2 of EncapNet (Li et al. 2018, section 2.2).

For each cosine between a vote and its parent: the percentage of votes that have it, and the mean length of these votes.
As routing learns, the votes that agree with their parent and those that oppose it become many and long.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from torchcaps.capsules import Capsules, lengths, widen
from torchcaps.config import from_plain
from torchcaps.inspect.couplings import visiting
from torchcaps.layers import CapsuleLayer, evaluating
from torchcaps.losses import multi_hot
from torchcaps.models import Model
from torchcaps.routing import Step

SHORTEST = 1e-12  # of a vote or a parent that has a direction; others count as at right angles


@dataclass(frozen=True)
class Agreement:
    """Of one routed layer, over equal steps of the cosine from -1 to 1."""

    routing: str  #: its registered name
    share: tuple[float, ...]  #: percentage of votes in each step; they add up to 100
    length: tuple[float, ...]  #: mean length of the votes in each step; 0 where there are none

    def __post_init__(self) -> None:
        if not self.share or len(self.share) != len(self.length):
            raise ValueError(
                f"agreement has {len(self.share)} shares and {len(self.length)} lengths; it must have as many"
            )
        if not all(map(math.isfinite, self.share + self.length)):
            raise ValueError("agreement holds a number that is not finite")


def measure_agreement(
    model: Model, batches: Iterable[tuple[Tensor, Tensor]], steps: int = 20, true_class: bool = True
) -> dict[str, Agreement]:
    """Return the agreement of votes with the parents of the last iteration, for each routed layer of `model`, bottom
    first.

    Args:
        model: it is put into evaluation mode, and back into the mode that it was in.
        batches: images [b, c, h, w] as the model takes them, and labels int64 [b] or label sets [b, classes], on the
            device of the model.
        steps: of the cosine, at least 2.
        true_class: of the class capsules, only those of the labels; otherwise all.

    Raises:
        ValueError: for fewer than 2 steps, and where votes or parents are not finite; names the layer.
    """
    if steps < 2:
        raise ValueError(f"steps is {steps}; there must be at least 2")
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(2, steps, dtype=torch.float64))  # votes, their lengths
    last: dict[str, tuple[CapsuleLayer, Capsules, Step]] = {}

    def visit(name: str, layer: CapsuleLayer, children: Capsules, t: int, step: Step) -> None:
        last[name] = layer, children, step

    with torch.no_grad(), evaluating(model), visiting(model, visit):
        for images, labels in batches:
            classes = model(images).capsules[-1:]
            for name, (layer, children, step) in last.items():
                top = bool(classes) and classes[0].poses is step.capsules.poses
                cosine, length = _compare(layer, children, step.capsules, labels if top and true_class else None)
                if not (length.isfinite().all() and step.capsules.poses.isfinite().all()):
                    raise ValueError(
                        f"votes or parents of layer {name!r} are not finite, so that no agreement can be measured: use "
                        "weights from before the training diverged"
                    )
                sums[name] += _histogram(cosine, length, steps)
    return {name: _summarise(last[name][0].routing.spec.name, counts) for name, counts in sums.items()}


def _compare(
    layer: CapsuleLayer, children: Capsules, parents: Capsules, labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return cosine of each vote with its parent, and its length, flattened; of the parents `labels` alone, where
    given.
    """
    votes = layer.votes(children)
    poses = widen(parents.poses)
    poses = poses.flatten(1, len(votes.space)) if votes.space else poses.unsqueeze(1)  # [b, p, j, d]
    if hidden := layer.routing.spec.hidden:  # elements that serve the routing alone, and that no parent has
        dense = widen(votes.dense())[..., :-hidden]
        length, agree = lengths(dense), (dense * poses.unsqueeze(2)).sum(-1)
    else:
        length, agree = votes.distance().sqrt(), widen(votes.agree(poses))  # [b, p, i, j]
    size = length * lengths(poses).unsqueeze(2)
    cosine = torch.where(size > SHORTEST, agree / size.clamp_min(SHORTEST), 0)
    there = torch.ones_like(cosine, dtype=torch.bool)
    if votes.present is not None:
        there &= votes.present[None, :, :, None]
    if labels is not None:
        there &= multi_hot(labels, votes.parents).bool()[:, None, None]
    return cosine[there], length.expand_as(there)[there]


def _histogram(cosine: Tensor, length: Tensor, steps: int) -> Tensor:
    """Return how many votes are in each step, and the sum of their lengths: [2, steps]."""
    step = ((cosine + 1) / 2 * steps).long().clamp(0, steps - 1).cpu()
    weights = torch.stack([torch.ones_like(length), length]).cpu().double()
    return torch.stack([torch.bincount(step, weight, minlength=steps) for weight in weights])


def _summarise(routing: str, counts: Tensor) -> Agreement:
    number, length = counts
    share = 100 * number / number.sum().clamp_min(1)
    return Agreement(routing, tuple(share.tolist()), tuple((length / number.clamp_min(1)).tolist()))


def read_agreement(history: Sequence[Mapping[str, Any]], columns: int = 5) -> dict[str, dict[int, Agreement]]:
    """Return what the lines of `metrics.jsonl` hold, by layer and epoch, as `draw_agreement` takes it.

    At most `columns` epochs, the first and the last among them, evenly spaced; none where agreement was not measured.

    Raises:
        ValueError: for lines that hold anything else.
    """
    lines = [line for line in history if line.get("agreement")]
    last, count = len(lines) - 1, min(columns, len(lines))
    chosen = [lines[round(n * last / max(count - 1, 1))] for n in range(count)]
    rows: dict[str, dict[int, Agreement]] = defaultdict(dict)
    for line in chosen:
        for name, values in line["agreement"].items():
            if not isinstance(values, dict) or len(values) != len(fields(Agreement)):
                raise ValueError(f"agreement of {name[:80]!r} must hold routing, share and length")
            rows[name][line["epoch"]] = from_plain(Agreement, values)
    return dict(rows)
