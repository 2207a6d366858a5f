"""A scene small enough to be read: two wholes, five parts of each, and four parts of nothing.

Each part votes for both wholes through matrices of its own. The votes of the parts of a whole agree on its pose; every
other vote points anywhere. A routing should send parts to their whole, and parts of nothing nowhere in particular.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from torchcaps.capsules import Capsules
from torchcaps.encapnet.sinkhorn import ground_cost, transport_plan
from torchcaps.layers import CapsuleLayer, CapsuleStack, LinearTransform
from torchcaps.routing import Step, routing_class

PARTS, NOISE, POSE, LENGTH = 5, 4, 16, 3.0
CHILDREN = 2 * PARTS + NOISE


def toy_scene(seed: int = 0, jitter: float = 0.1) -> tuple[Capsules, LinearTransform]:
    """Return the children, poses [1, 14, 16] with activations [1, 14] of 1, and their transform to two parents of 16.

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
    """Return coupling of the toy scene by iteration, [iterations, children, parents]; uniform where the routing has
    none.
    """
    children, transform = toy_scene()
    layer = CapsuleLayer(transform, routing, "auto", **options)
    couplings: list[Tensor] = []

    def visit(level: int, t: int, step: Step) -> None:
        coupling = torch.full((1, 1, 1, 1), 1 / 2) if step.coupling is None else step.coupling
        couplings.append(coupling.expand(1, 1, CHILDREN, 2)[0, 0])

    CapsuleStack([layer], iterations)(children, visit)
    return torch.stack(couplings)


def toy_coefficients(steps: Sequence[int] = (0, 20, 40, 60), lr: float = 3e-4) -> Tensor:
    """Return coefficients of discriminative routing after so many ascents where A is there and B is not,
    [len(steps), i, j].

    A larger step, or more of them, shows why it must be chosen with care: the objective has no largest value.
    """
    children, transform = toy_scene()
    stack = CapsuleStack([CapsuleLayer(transform, "discriminative")])
    (coefficient,) = stack.coefficients()
    ascent = torch.optim.SGD([coefficient], lr)
    kept = []
    for step in range(max(steps) + 1):
        if step in steps:
            kept.append(coefficient.detach().clone())
        loss = -stack.objective(stack(children), torch.tensor([[1.0, 0.0]]))
        (coefficient.grad,) = torch.autograd.grad(loss, [coefficient])
        ascent.step()
    return torch.stack(kept)


def draw_toy_couplings(routing: str, iterations: int = 4, **options: object) -> Figure:
    """Return where each part goes over the iterations: one panel each, parts as rows, wholes as columns."""
    couplings = toy_couplings(routing, iterations, **options)
    titles = [f"iteration {t + 1}" for t in range(iterations)]
    return _draw_panels(couplings, titles, routing_class(routing).spec.name, "coupling", (0, 1), "viridis")


def draw_toy_coefficients(steps: Sequence[int] = (0, 20, 40, 60)) -> Figure:
    """Return the coefficients of discriminative routing while they ascend their objective."""
    coefficients = toy_coefficients(steps)
    reach = coefficients.abs().max().item()
    titles = [f"{step} steps" for step in steps]
    return _draw_panels(coefficients, titles, "discriminative", "coefficient", (-reach, reach), "RdBu_r")


def _draw_panels(
    values: Tensor, titles: Sequence[str], name: str, what: str, limits: tuple[float, float], colours: str
) -> Figure:
    """Return panels of [panel, parts, wholes], side by side, with one scale of colours."""
    figure = Figure(figsize=(1.5 * len(values) + 1.4, 3.6), layout="constrained")
    panels = figure.subplots(1, len(values), squeeze=False)[0]
    for n, (axes, panel) in enumerate(zip(panels, values, strict=True)):
        axes.imshow(panel.numpy(), cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
        axes.set_title(titles[n], fontsize=9)
        axes.set_xticks([0, 1], ["A", "B"])
        _label_parts(axes, named=n == 0, color="white" if colours == "viridis" else "black")
    figure.colorbar(panels[0].images[0], ax=panels, label=what)
    figure.suptitle(name, fontsize=10)
    return figure


@torch.no_grad()
def draw_toy_agreement() -> Figure:
    """Return which pairs of parts agree on a whole: the products of their votes, which FM agreement sums (one panel
    each).
    """
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


@torch.no_grad()
def draw_toy_transport(epsilons: Sequence[float] = (1.0, 0.1, 0.01)) -> Figure:
    """Return what EncapNet's feedback minimises over: the plan that carries one batch of features to another.

    Both batches hold three kinds of features, 5, 4 and 3 of each; the cost is the cosine distance.
    """
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(3, 8, generator=generator).repeat_interleave(torch.tensor([5, 4, 3]), 0)
    batches = [kinds + 0.5 * torch.randn(12, 8, generator=generator) for _ in range(2)]
    cost = ground_cost(batches[0], batches[1], "cosine")
    figure = Figure(figsize=(2.5 * len(epsilons) + 0.8, 2.9), layout="constrained")
    panels = figure.subplots(1, len(epsilons), squeeze=False)[0]
    for axes, eps in zip(panels, epsilons, strict=True):
        axes.imshow(12 * transport_plan(cost, eps, 50).numpy(), cmap="viridis", vmin=0, vmax=1)
        axes.set_title(f"epsilon {eps}", fontsize=9)
        axes.set(xticks=[], yticks=[])
    panels[0].set_ylabel("generated features")
    figure.supxlabel("true features", fontsize=10)
    figure.colorbar(panels[0].images[0], ax=panels, label="share of a feature")
    return figure


def _label_parts(axes: Axes, named: bool, color: str) -> None:
    """Draw lines between the groups of parts, and their names where `named`."""
    for edge in (PARTS, 2 * PARTS):
        axes.axhline(edge - 0.5, color=color, linewidth=1)
    middles = [PARTS / 2 - 0.5, 1.5 * PARTS - 0.5, 2 * PARTS + NOISE / 2 - 0.5]
    axes.set_yticks(middles, ["parts of A", "parts of B", "of nothing"] if named else ["", "", ""])
