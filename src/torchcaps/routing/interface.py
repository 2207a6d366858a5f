"""What every routing is: a start, a coupling, an update."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from torchcaps.capsules import Capsules
from torchcaps.config import LossName, ScoreKind
from torchcaps.names import check_choice, whole
from torchcaps.votes import Votes

S = TypeVar("S")  # the state of a routing: sized like the parents, never like the coupling
Start = Literal["zero", "random", "learnt"]
Coupling = Any  # Tensor or None; each routing narrows it to what its `couple` gives


class Sizes(NamedTuple):
    """What a routing must know when it is built."""

    children: int  # per position, i
    parents: int  # per position, j
    pose: int  # elements of a parent's pose, d


class Step(NamedTuple, Generic[S]):
    """One iteration of one layer. `coupling` None: uniform, or a fused step that keeps none."""

    capsules: Capsules
    coupling: Tensor | None  # [b, p, i, j], or what broadcasts to it
    state: S


class Takes(NamedTuple):
    """How a head makes the children of a routing; by default vectors of 8, squashed (Sabour et al. 2017)."""

    matrix: bool = False  # 4x4 poses
    squashed: bool = True
    layer_norm: bool = False  # of each child's pose; parents are normed too, and scores are a linear map of a pose


VECTORS = Takes()


@dataclass(frozen=True)
class Spec:
    """What an algorithm is and needs; tests, docs and the command line read it here."""

    name: str
    paper: str
    time: str  # order of one layer, all iterations; b batch, I children, J parents, d pose, R iterations
    memory: str  # order of what is held for backward, beside the children and the weights
    iterative: bool  # further iterations change the result
    couplings: bool  # it shares a child out by coefficients that can be looked at
    needs_activations: bool = False
    gives_activations: bool = False
    activation: ScoreKind = "probability"  # what an activation is, where it gives them
    objective: bool = False  # it has coefficients that are learnt by a goal of their own
    binary_weights: bool = False  # weights enter as signs and scales only, so that they can be packed
    hidden: int = 0  # last elements of a vote that serve the routing alone, and are not in a parent's pose
    exact_gradient: bool = True  # False: a sign lets its gradient straight through
    loss: LossName = "margin"  # that class capsules are trained with, its paper's where it serves
    takes: Takes = VECTORS

    @property
    def capabilities(self) -> list[str]:
        """Return what sets the algorithm apart, in words for people: "iterative", "needs activations" and the like."""
        words = {
            "iterative": self.iterative,
            "has couplings": self.couplings,
            "needs activations": self.needs_activations,
            "gives activations": self.gives_activations,
            "has an objective": self.objective,
            "packs to one bit": self.binary_weights,
            "straight-through gradient": not self.exact_gradient,
        }
        return [word for word, holds in words.items() if holds] or ["one pass"]


class Routing(nn.Module, Generic[S]):
    """From votes to parents. Subclasses define `spec`, `couple` and `update`, and `start` where they have a state.

    `S` is the type of that state, e.g. `class Dynamic(Routing[Tensor | None])`: None before the first iteration.

    Poses are [b, p, j, d] here: p positions, of which linear capsules have one.
    """

    spec: ClassVar[Spec]

    def __init__(self, sizes: Sizes):
        super().__init__()
        given = zip(Sizes._fields, sizes, strict=True)
        self.sizes = Sizes(*(whole(f"{what} of a routing", value) for what, value in given))
        if self.sizes.pose < self.spec.hidden:
            raise ValueError(
                f"pose of a routing is {self.sizes.pose}; of {self.spec.name!r} it is at least {self.spec.hidden}, the "
                "elements of a vote that serve the routing alone"
            )

    def prepare(self, votes: Votes) -> Votes:
        """Return the votes as this routing takes them, made once for all iterations; as they are, by default."""
        return votes

    def keep_start(self, start: Start, draw: Callable[..., Tensor], *shape: int) -> None:
        """Keep what the first iteration starts from as `self.initial`, in the state dict.

        It is None for "zero"; for "random" it is `draw(*shape)`, once, when the layer is built; for "learnt" a
        parameter of that shape, which starts from zero. Only "random" draws, so the others leave the generator alone.
        """
        check_choice("start", start, ("zero", "random", "learnt"))
        self.initial: Tensor | None
        if start == "learnt":
            self.initial = nn.Parameter(torch.zeros(*shape))
        else:
            self.register_buffer("initial", draw(*shape) if start == "random" else None)

    def keep_bias(self, bias: bool) -> None:
        """Keep a learnt number for each element of each parent as `self.bias` [j, d], from zero; None without."""
        shape = self.sizes.parents, self.sizes.pose
        self.bias: Tensor | None
        self.register_parameter("bias", nn.Parameter(torch.zeros(*shape)) if bias else None)

    def add_bias(self, total: Tensor) -> Tensor:
        """Return what the nonlinearity or norm of the parents takes, of the sum of their votes [b, p, j, d], in its
        type.

        Without a bias the negative of all children gives the negative of all parents, and their lengths are the same
        (Peer, Stabinger and Rodriguez-Sanchez 2021): a network cannot tell the two apart.
        """
        bias = self.kept_bias
        return total if bias is None else total + bias.to(total.dtype)

    @property
    def kept_bias(self) -> Tensor | None:
        """Return what `keep_bias` keeps; None of a routing that never asked for one."""
        return getattr(self, "bias", None)

    def start(self, votes: Votes) -> S:
        """Return the state before the first iteration; by default None, which stands for zero parents."""
        return None  # pyright: ignore[reportReturnType] - S has None where a routing leaves this as it is

    def couple(self, votes: Votes, state: S, t: int) -> Tensor | None:
        """Return the coupling of iteration `t` = 0, 1, ...; None for the uniform one, 1 / j, as `Votes.combine`
        takes it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method couple(votes, state, t)")

    def compete(self, votes: Votes, logits: Tensor | None) -> Tensor:
        """Return a coupling by `logits` [b, p, i, j], as those who compete in this routing share the children out.

        None stands for equal logits, and gives what broadcasts to [b, p, i, j]. So couplings of somebody else's choice
        are put in place of the routing's own (`torchcaps.examine`).
        """
        return votes.compete(logits)

    def update(self, votes: Votes, coupling: Coupling, state: S, t: int) -> tuple[Capsules, S]:
        """Return the parents that `coupling` makes of the votes, and the state that the next iteration starts from."""
        raise NotImplementedError(f"{type(self).__name__} has no method update(votes, coupling, state, t)")

    def step(self, votes: Votes, state: S, t: int) -> Step[S]:
        """Return one iteration: couple, then update."""
        if self.spec.needs_activations and votes.activations is None:
            raise ValueError(f"routing {self.spec.name!r} needs activations of the children, and these have none")
        coupling = self.couple(votes, state, t)
        capsules, state = self.update(votes, coupling, state, t)
        return Step(capsules, coupling, state)

    def coefficients(self) -> list[nn.Parameter]:
        """Return the parameters that are learnt by the routing's own objective, not by the training loss; none by
        default.
        """
        return []

    def objective(self, state: S, targets: Tensor) -> Tensor:
        """Return what the coefficients maximise, a mean over the batch; `targets` [b, j] of 0 and 1."""
        raise NotImplementedError(f"routing {self.spec.name!r} has no objective of its own")

    def penalty(self) -> Tensor:
        """Return what this layer's coefficients cost, a scalar, beside the objective's sum over the batch."""
        raise NotImplementedError(f"routing {self.spec.name!r} has no coefficients")

    def constant_coupling(self) -> Tensor | None:
        """Return the coupling [i, j] where it is the same for all children, so that weights can take it in.

        It is the tensor itself, not a copy, of a routing whose parents are squash(sum_i c_ij vote_ij), with the bias of
        `add_bias` inside. None, by default: the coupling depends on the votes.
        """
        return None

    def select(self, children: Tensor | slice, parents: Tensor | slice, sizes: Sizes) -> Routing[S]:
        """Return a copy for some of the children [i] and parents [j] only, bool, of which there are `sizes`.

        Only a routing with a `constant_coupling` has one, which is then of these children and parents.
        """
        raise NotImplementedError(f"routing {self.spec.name!r} has no coupling that could be cut")

    def after_step(self, lr: float, batch: int) -> None:
        """Do what belongs behind a step of the optimiser of `coefficients`; nothing, by default.

        Args:
            lr: rate of that step, which is of the objective, a mean over the batch.
            batch: observations that this mean is of, over all processes.
        """

    def collapsed(self) -> list[int]:
        """Return the parents j that the coefficients have all but given up, which training warns of; [] by default."""
        return []

    def extra_repr(self) -> str:
        """Return the settings that differ from their defaults, of those that are kept under their own names."""
        usual = {name: each.default for name, each in inspect.signature(type(self)).parameters.items()}
        kept = vars(self) | {name: value is not None for name, value in self._parameters.items() if name in usual}
        if self._parameters.get("initial") is not None:
            kept["start"] = "learnt"
        elif self._buffers.get("initial") is not None:
            kept["start"] = "random"
        plain = bool | int | float | str | tuple
        shown = {name: kept[name] for name in usual if isinstance(kept.get(name), plain) and name != "sizes"}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items() if value != usual[name])
