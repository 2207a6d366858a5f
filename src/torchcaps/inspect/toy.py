"""A scene small enough to be read: two wholes, five parts of each, and four parts of nothing.

Each part votes for both wholes through matrices of its own. The votes of the parts of a whole agree on its pose; every
other vote points anywhere. A routing should send parts to their whole, and parts of nothing nowhere in particular.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, CapsuleStack, LinearTransform
from torchcaps.routing import Step, routing_class

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS, NOISE, POSE, LENGTH = 5, 4, 16, 3.0
CHILDREN = 2 * PARTS + NOISE


def toy_scene(seed: int = 0, jitter: float = 0.1) -> tuple[Capsules, LinearTransform]:
    """The children, poses [1, 14, 16] with activations [1, 14] of 1, and their transform to two parents of 16.

    `jitter` is the standard deviation of a vote about the pose of its whole, of length 1; poses are then made three
    times as long.
    """
    generator = torch.Generator().manual_seed(seed)
    transform = LinearTransform(CHILDREN, 2, POSE, POSE)
    turns, _ = torch.linalg.qr(torch.randn(2, CHILDREN, POSE, POSE, generator=generator))  # orthogonal [j, i, c, m]
    wholes = torch.nn.functional.normalize(torch.randn(2, POSE, generator=generator), dim=-1)
    poses = torch.nn.functional.normalize(torch.randn(CHILDREN, POSE, generator=generator), dim=-1)
    for whole in range(2):
        parts = slice(whole * PARTS, (whole + 1) * PARTS)
        aim = wholes[whole] + jitter * torch.randn(PARTS, POSE, generator=generator)
        poses[parts] = torch.einsum("im,icm->ic", aim, turns[whole, parts])  # the pose whose vote is the aim
    with torch.no_grad():
        transform.weight.copy_(turns)
    return Capsules(LENGTH * poses[None], torch.ones(1, CHILDREN)), transform


@torch.no_grad()
def toy_couplings(routing: str, iterations: int = 4, **options: object) -> Tensor:
    """Coupling of the toy scene by iteration, [iterations, children, parents]; uniform where the routing has none."""
    children, transform = toy_scene()
    layer = CapsuleLayer(transform, routing, **options)
    couplings: list[Tensor] = []

    def visit(level: int, t: int, step: Step) -> None:
        coupling = torch.full((1, 1, 1, 1), 1 / 2) if step.coupling is None else step.coupling
        couplings.append(coupling.expand(1, 1, CHILDREN, 2)[0, 0])

    CapsuleStack([layer], iterations)(children, visit)
    return torch.stack(couplings)


@torch.no_grad()
def draw_toy_couplings(routing: str, iterations: int = 4, **options: object) -> Figure:
    """Where each part goes over the iterations: one panel each, parts as rows, wholes as columns."""
    from matplotlib.figure import Figure

    couplings = toy_couplings(routing, iterations, **options)
    figure = Figure(figsize=(1.5 * len(couplings) + 1.4, 3.6), layout="constrained")
    panels = figure.subplots(1, len(couplings), squeeze=False)[0]
    for t, (axes, coupling) in enumerate(zip(panels, couplings, strict=True)):
        axes.imshow(coupling.numpy(), cmap="viridis", vmin=0, vmax=1, aspect="auto")
        axes.set_title(f"iteration {t + 1}", fontsize=9)
        axes.set_xticks([0, 1], ["A", "B"])
        _label_parts(axes, named=t == 0, color="white")
    figure.colorbar(panels[0].images[0], ax=panels, label="coupling")
    figure.suptitle(routing_class(routing).spec.name, fontsize=10)
    return figure


@torch.no_grad()
def draw_toy_agreement() -> Figure:
    """Which pairs of parts agree on a whole: the products of their votes, which FM agreement sums (one panel each)."""
    from matplotlib.figure import Figure

    children, transform = toy_scene()
    votes = torch.nn.functional.normalize(transform(children).dense()[0, 0], dim=-1)  # [i, j, d]
    pairs = torch.einsum("ijd,kjd->jik", votes, votes)
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for whole, (axes, products) in enumerate(zip(panels, pairs, strict=True)):
        axes.imshow(products.numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set_title(f"pairs of votes for {'AB'[whole]}", fontsize=9)
        axes.set_xticks([])
        _label_parts(axes, named=whole == 0, color="black")
    figure.colorbar(panels[0].images[0], ax=panels, label="product of two unit votes")
    return figure


def _label_parts(axes: Axes, named: bool, color: str) -> None:
    """Lines between the groups of parts, and their names where `named`."""
    for edge in (PARTS, 2 * PARTS):
        axes.axhline(edge - 0.5, color=color, linewidth=1)
    middles = [PARTS / 2 - 0.5, 1.5 * PARTS - 0.5, 2 * PARTS + NOISE / 2 - 0.5]
    axes.set_yticks(middles, ["parts of A", "parts of B", "of nothing"] if named else ["", "", ""])
