"""A network trained with EncapNet's feedback agreement (Li et al. 2018, section 3.2): units on every stage.

One unit compares what a stage saw with what is generated from its output (figure 3a); a second one, where asked for,
does so with what the stage's first layer gave, along the path of the skip connection (Table 3, 8). Their divergences
are `Output.aux["penalties"]`, named by the modules of Table 2 (M1, M1-skip, M2, ...), and their sum times lambda is
`Output.aux["penalty"]`, which the training loss adds. In evaluation mode there is the network alone.
"""

from __future__ import annotations

import inspect
import typing
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from torchcaps.config import ScoreKind
from torchcaps.encapnet.feedback import Divergence, OptimalTransportUnit
from torchcaps.encapnet.sinkhorn import Cost, First, kl_divergence, sinkhorn_divergence
from torchcaps.layers import evaluating
from torchcaps.models.encapnet.staged import StagedModel
from torchcaps.models.registry import Factory, Model, Output, register_variant
from torchcaps.names import check_choice

SUFFIX = "-feedback"  # of the names of networks with it


@dataclass(frozen=True)
class Feedback:
    """How a network is given feedback; the defaults are the paper's, Table 3 (c).

    `generator` "capsules" is a plain one on networks without capsules.
    """

    units: int = 1  #: on each stage, 1 or 2
    weight: float = 10.0  #: lambda, of the sum over all units
    generator: Literal["capsules", "vanilla"] = "capsules"  #: vanilla (d4): no groups and no squash
    groups: Literal["pose", "capsules"] = "pose"  #: of the generator: the paper's, or the authors' code's
    extractor: bool = True  #: whether there are critics; False (d3): raw maps are compared
    divergence: Literal["sinkhorn", "kl"] = "sinkhorn"  #: kl (b); what follows is of sinkhorn
    cost: Cost = "cosine"  #: ground cost; l2 (d5)
    eps: float = 0.1  #: of the entropy
    iterations: int = 10  #: of Sinkhorn
    first: First = "columns"  #: what each of them scales first: columns (Eq. 9), or rows (the authors' code)
    bias_fix: bool = True  #: False (d1): W(x, y) alone
    through_plan: bool = False  #: True (d2): gradient through the plan too

    def __post_init__(self) -> None:
        if self.units not in (1, 2) or self.weight < 0:
            raise ValueError(f"units is {self.units} and weight {self.weight}; they must be 1 or 2, and at least 0")
        check_choice("generator", self.generator, ("capsules", "vanilla"))
        check_choice("divergence", self.divergence, ("sinkhorn", "kl"))
        one = torch.ones(1, 1, device="cpu")
        self.measure()(one, one)  # so that a ValueError of the other settings comes here, not in training

    def measure(self) -> Divergence:
        """Return the divergence of two batches of features."""
        if self.divergence == "kl":
            return kl_divergence
        return partial(
            sinkhorn_divergence,
            cost=self.cost,
            eps=self.eps,
            iterations=self.iterations,
            bias_fix=self.bias_fix,
            through_plan=self.through_plan,
            first=self.first,
        )


class Shapes(NamedTuple):
    """(channels, height, width) around one stage: what it sees, what its first layer gives, and what it gives."""

    lower: torch.Size
    first: torch.Size
    higher: torch.Size


class WithFeedback(Model):
    """`network`, with units that are there in training only.

    Args:
        network: it is trained as it is; `deployed()` gives it back.
        feedback: the settings.

    Raises:
        ValueError: for a network that is no `StagedModel`, that does not take its own images, or of whose stages one
            returns no maps, shrinks them by more than two, or has channels that the generator cannot group; for a
            second unit on a stage of one layer.
    """

    def __init__(self, network: StagedModel, feedback: Feedback | None = None):
        super().__init__()
        if not isinstance(network, StagedModel):
            raise ValueError(
                f"feedback needs a network of stages, and {type(network).__name__} is none: arrange its parts as "
                "StagedModel(stem, stages, head, image)"
            )
        self.feedback = feedback or Feedback()
        self.network = network
        self.units = nn.ModuleList(
            nn.ModuleList(self._unit(n, shapes, lower) for lower in (shapes.lower, shapes.first)[: self._count(n)])
            for n, shapes in enumerate(stage_shapes(network))
        )
        self.penalties = tuple(
            f"M{n}{end}"
            for n, units in enumerate(self.units, 1)
            for end in ("", "-skip")[: len(units)]  # pyright: ignore[reportArgumentType]
        )

    @property
    def scores(self) -> ScoreKind | None:
        return self.network.scores

    def _count(self, stage: int) -> int:
        units, layers = self.feedback.units, len(self.network.stages[stage])  # pyright: ignore[reportArgumentType]
        if units > layers:
            raise ValueError(f"stage {stage + 1} has a single layer, so that a second unit has nothing to compare with")
        return units

    def _unit(self, stage: int, shapes: Shapes, lower: torch.Size) -> OptimalTransportUnit:
        (above, *small), (below, height, width) = shapes.higher, lower
        strides = [stride for stride in (1, 2) if [-(-side // stride) for side in (height, width)] == small]
        if not strides:
            raise ValueError(
                f"stage {stage + 1} makes maps of {small[0]}x{small[1]} of {height}x{width}, but a generator undoes a "
                "stride of 1 or 2 along both sides: split the stage"
            )
        try:
            return OptimalTransportUnit(
                above,
                below,
                (height, width),
                strides[0],
                self.network.capsules if self.feedback.generator == "capsules" else None,
                self.feedback.groups,
                self.feedback.extractor,
                self.feedback.measure(),
            )
        except ValueError as error:
            raise ValueError(f"stage {stage + 1}: {error}") from error

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        """Run the network; in training `aux["penalties"]` is each unit's divergence, and `aux["penalty"]` lambda
        times their sum.
        """
        if not self.training:
            return self.network(images, labels)
        maps, divergences = self.network.stem(images), []
        for stage, units in zip(self.network.stages, self.units, strict=True):
            lower, first, maps = run_stage(stage, maps)  # pyright: ignore[reportArgumentType]
            for unit, seen in zip(units, (lower, first), strict=False):  # pyright: ignore[reportArgumentType]
                divergences.append(unit(maps, seen))
        output, penalties = self.network.read(maps), torch.stack(divergences)
        added = {"penalty": self.feedback.weight * penalties.sum(), "penalties": penalties}
        return output._replace(aux={**output.aux, **added})

    def deployed(self) -> StagedModel:
        """Return the network, which is told how `create_model` would make it where that made this model."""
        if self.origin is not None:
            name, own = self.origin["name"].removesuffix(SUFFIX), {each.name for each in fields(Feedback)}
            others = {key: value for key, value in self.origin.items() if key not in own}
            self.network.origin = {**others, "name": name}
        return self.network


def run_stage(stage: nn.Sequential, lower: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `stage` sees, what its first layer gives of it, and what the stage gives."""
    first, *others = stage
    higher = middle = first(lower)
    for layer in others:
        higher = layer(higher)
    return lower, middle, higher


class _Trace(nn.Module):
    """All maps of a network's stages."""

    def __init__(self, network: StagedModel):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        maps, seen = self.network.stem(images), []
        for stage in self.network.stages:
            seen.append(run_stage(stage, maps))  # pyright: ignore[reportArgumentType]
            maps = seen[-1][-1]
        return seen


def stage_shapes(network: StagedModel) -> list[Shapes]:
    """Return the shapes around each stage, for images of `network.image`; nothing is computed.

    Raises:
        ValueError: when the network does not take these, or a stage returns anything but maps [b, c, h, w].
    """
    trace = _Trace(network)
    weights = {name: value.to("meta") for name, value in (*trace.named_parameters(), *trace.named_buffers())}
    try:
        with torch.no_grad(), evaluating(trace):
            maps = functional_call(trace, weights, (torch.empty(1, *network.image, device="meta"),))
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"the network does not take images of {network.image}, as it says: {reason}") from error
    for number, stage in enumerate(maps, 1):
        for each in stage:
            if not isinstance(each, Tensor) or each.ndim != 4:
                what = f"a tensor of {each.ndim} dimensions" if isinstance(each, Tensor) else type(each).__name__
                raise ValueError(f"feedback compares maps [b, c, h, w], but around stage {number} there is {what}")
    return [Shapes(*(each.shape[1:] for each in stage)) for stage in maps]


def with_feedback(factory: Factory) -> Factory:
    """Return the function of the same networks with feedback; its options are those of `factory` and of `Feedback`."""
    own = [each.name for each in fields(Feedback)]

    def build(**options: typing.Any) -> WithFeedback:
        feedback = Feedback(**{name: options.pop(name) for name in own if name in options})
        return WithFeedback(factory(**options), feedback)  # pyright: ignore[reportArgumentType]

    arguments = [*inspect.signature(factory).parameters.values(), *inspect.signature(Feedback).parameters.values()]
    build.__signature__ = inspect.Signature(arguments)  # pyright: ignore[reportFunctionMemberAccess]
    build.__annotations__ = typing.get_type_hints(factory) | typing.get_type_hints(Feedback)
    return build


def register_with_feedback(name: str, factory: Factory, **defaults: object) -> None:
    """Register a function that makes staged models under `name`, and the same with feedback under `name`-feedback.

    `defaults` are other ones for some options of the function.
    """
    register_variant(name, factory, **defaults)
    register_variant(name + SUFFIX, with_feedback(factory), **defaults)
