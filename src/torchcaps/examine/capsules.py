"""How couplings polarise, how capsules differ from image to image, and which of them are dead or starved.

T- and D-score: Peer, Stabinger and Rodriguez-Sanchez (2018). Dead and starved capsules, and couplings that hardly
depend on the image: Mitterreiter, Koch, Giesen and Laue (2023).
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchcaps.capsules import Capsules, lengths, widen
from torchcaps.examine.found import CapsuleLayerFacts
from torchcaps.examine.sample import Sample, take
from torchcaps.inspect.couplings import visiting
from torchcaps.layers import CapsuleLayer
from torchcaps.losses import build_criterion, multi_hot
from torchcaps.models import Model
from torchcaps.routing import Step

DEAD = 0.1  # of the layer's largest activation, which a dead capsule never exceeds
STARVED = 0.01  # of the layer's mean gradient, below which a capsule learns nothing
CHILDREN = "children"
LEAST = 1e-12  # of the couplings' variance, below which it is rounding


@dataclass
class _Sums:
    """Of what is there once for each image: sums over images, and the largest."""

    images: int = 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    largest: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """Take in [b, ...]."""
        values = values.detach().cpu().double()
        self.images += len(values)
        self.total, self.squares = self.total + values.sum(0), self.squares + values.square().sum(0)
        top = values.amax(0)
        self.largest = top if self.largest is None else torch.maximum(self.largest, top)

    @property
    def mean(self) -> Tensor:
        assert isinstance(self.total, Tensor)
        return self.total / self.images

    @property
    def variance(self) -> Tensor:
        """Return over the images."""
        assert isinstance(self.squares, Tensor)
        return (self.squares / self.images - self.mean.square()).clamp_min(0)


@dataclass
class _Seen:
    """Of one layer, over all batches."""

    layer: CapsuleLayer | None
    couplings: dict[int, _Sums] = field(default_factory=lambda: defaultdict(_Sums))
    active: dict[int, _Sums] = field(default_factory=lambda: defaultdict(_Sums))
    polar: dict[int, Tensor] = field(default_factory=lambda: defaultdict(lambda: torch.zeros(2, dtype=torch.float64)))
    gradient: _Sums = field(default_factory=_Sums)


def measure_layers(model: Model, sample: Sample) -> list[CapsuleLayerFacts]:
    """Return what can be said of each layer of capsules, bottom first; the children of a stack come before its layers.

    - t_score: 1 - H(c_i) / ln J of a child's shares c_i, with H the entropy in nats: mean over children weighted by
      activation (or length). 1: each child goes to one parent, a tree; 0: to all equally.
    - image_share: of the couplings' variance over images, children and parents, the share within a child and parent:
      0 where routing is static, or does nothing at all.
    - d_score: the largest standard deviation, over images, of a capsule's activation (or length).
    - dead: capsules whose activation never exceeds a tenth of the layer's largest.
    - gradient: norm of the training loss's gradient by a capsule's pose and activation, where a decoder paints the
      class of the label, as in training; a capsule is starved whose mean is at most a hundredth of the layer's. Where
      no gradient reaches the layer at all, as of a loss that is 0, none is starved beside others: that is None.

    Args:
        model: in evaluation mode.
        sample: images and the loss.
    """
    seen: dict[str, _Seen] = {}
    last: dict[str, Capsules] = {}

    def visit(name: str, layer: CapsuleLayer, children: Capsules, t: int, step: Step) -> None:
        if name.endswith(".0") and t == 0:
            below = name.removesuffix("0") + CHILDREN
            seen.setdefault(below, _Seen(None)).active[0].add(strengths(children).flatten(1))
            last[below] = children
        facts = seen.setdefault(name, _Seen(layer))
        facts.active[t].add(_bounded(layer, strengths(step.capsules)).flatten(1))
        last[name] = step.capsules
        if layer.routing.spec.couplings:
            shares = shares_of(layer, step)
            facts.couplings[t].add(shares)
            facts.polar[t] += polarity(shares, weights_of(layer, children))

    criterion = build_criterion(sample.loss)
    for images, labels in sample.stream():
        last.clear()
        with torch.enable_grad(), visiting(model, visit):
            output = take(model, images, labels)
        loss = criterion(output, images, multi_hot(labels, len(sample.classes)))
        for name, norms in _gradients(loss * len(images), last).items():
            seen[name].gradient.add(norms)
    return [_summarise(name, each) for name, each in seen.items()]


def strengths(capsules: Capsules) -> Tensor:
    """Return the activation of each capsule, or the length of its pose: [b, ..., j]."""
    return widen(lengths(capsules.poses) if capsules.activations is None else capsules.activations).detach()


def _bounded(layer: CapsuleLayer, strength: Tensor) -> Tensor:
    """Return what can be compared: of logits their sigmoid."""
    spec = layer.routing.spec
    return strength.sigmoid() if spec.gives_activations and spec.activation == "logit" else strength


def shares_of(layer: CapsuleLayer, step: Step) -> Tensor:
    """Return the shares of each child, float64 [b, p, i, j] on the CPU, at least 0; they add up to 1, or are all 0 of
    a child that gives none.
    """
    poses, (children, parents, _) = step.capsules.poses, layer.transform.sizes
    positions = poses.shape[1:-2].numel()
    coupling = poses.new_full((), 1 / parents) if step.coupling is None else step.coupling
    size = coupling.detach().abs().cpu().double().expand(len(poses), positions, children, parents)
    return size / size.sum(-1, keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)


def weights_of(layer: CapsuleLayer, children: Capsules) -> Tensor:
    """Return the activation, or length, of each child in its window: [b, p, i], 0 outside the image; of scrambled ones
    1.
    """
    votes = layer.transform(Capsules(children.poses.detach(), strengths(children).abs().to(children.poses.dtype)))
    if votes.activations is None:
        return torch.ones(1, 1, layer.transform.sizes.children, device=children.poses.device)
    return votes.activations.detach()


def polarity(shares: Tensor, weight: Tensor) -> Tensor:
    """Return the sum of the T-scores of children, times their weights, and the sum of these: float64 [2], on the CPU.

    Args:
        shares: [b, p, i, j] on the CPU, see `shares_of`.
        weight: [b, p, i] of the children, or what broadcasts to it.
    """
    parents = shares.shape[-1]
    weight = weight.cpu().double().expand(shares.shape[:-1]) * (shares.sum(-1) > 0)
    entropy = torch.special.entr(shares).sum(-1)
    score = 1 - entropy / math.log(parents) if parents > 1 else torch.zeros_like(entropy)
    return torch.stack([(score * weight).sum(), weight.sum()])


def _gradients(loss: Tensor, capsules: dict[str, Capsules]) -> dict[str, Tensor]:
    """Return norm of the gradient by each capsule, float64 [b, n] on the CPU, of those of each layer."""
    leaves = [(name, each) for name, found in capsules.items() for each in found if each is not None]
    leaves = [(name, each) for name, each in leaves if each.requires_grad]
    if not leaves or not loss.requires_grad:
        return {}
    found = torch.autograd.grad(loss, [each for _, each in leaves], allow_unused=True)
    squares: dict[str, Tensor] = {}
    for (name, leaf), gradient in zip(leaves, found, strict=True):
        strength = leaf if leaf.ndim < capsules[name].poses.ndim else leaf[..., 0]
        size = torch.zeros(strength.shape, dtype=torch.float64)
        if gradient is not None:
            square = gradient.cpu().double().square()
            size = square if leaf.ndim < capsules[name].poses.ndim else square.sum(-1)
        squares[name] = squares.get(name, 0) + size
    return {name: each.sqrt().flatten(1) for name, each in squares.items()}


def _summarise(name: str, seen: _Seen) -> CapsuleLayerFacts:
    final = seen.active[max(seen.active)]
    assert final.largest is not None
    absent = (None,) * len(seen.active) if seen.layer is not None else ()
    tree = None if seen.layer is None or seen.layer.transform.sizes.parents == 1 else seen.polar
    gradient = seen.gradient.mean if seen.gradient.images else None
    starved = None
    if gradient is not None and gradient.any():
        starved = (gradient <= STARVED * gradient.mean()).double().mean().item()
    return CapsuleLayerFacts(
        name,
        "" if seen.layer is None else seen.layer.routing.spec.name,
        tuple(_ratio(seen.polar[t]) for t in sorted(seen.polar)) if tree else absent,
        tuple(image_share(seen.couplings[t]) for t in sorted(seen.couplings)) or absent,
        tuple(seen.active[t].variance.max().sqrt().item() for t in sorted(seen.active)),
        final.mean.mean().item(),
        (final.largest <= DEAD * final.largest.max()).double().mean().item(),
        None if gradient is None else gradient.mean().item(),
        starved,
    )


def _ratio(polar: Tensor) -> float | None:
    """Return the mean T-score, of children that are there; None where all are silent."""
    score, weight = polar.tolist()
    return score / weight if weight > 0 else None


def image_share(sums: _Sums) -> float:
    """Return which share of the variance over images and entries is between images."""
    within, between = sums.variance.mean().item(), sums.mean.var(correction=0).item()
    return within / (within + between) if within > LEAST else 0.0
