"""One routed layer of capsules, and a stack of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

from torch import Tensor, nn

import torchcaps.kernels.steps  # noqa: F401 - fused steps are found once they are registered
from torchcaps.capsules import Capsules, autocast_type, saturate
from torchcaps.kernels.probe import Fused
from torchcaps.layers.transforms import Transform
from torchcaps.names import check_choice, whole
from torchcaps.routing import Routing, Step, create_routing
from torchcaps.routing.fused import (
    DEVICES,
    Form,
    Implementation,
    compiling,
    find_kernel,
    find_whole,
    runs_fused,
    runs_now,
    say_missing,
)
from torchcaps.votes import Votes
from torchcaps.votes.children import check_capsules

Schedule = Literal["sequential", "concurrent"]


class CapsuleLayer(nn.Module):
    """A transform that makes votes of children, and a routing that makes parents of votes.

    Args:
        transform: `LinearTransform`, `ConvTransform`, or one of your own; without coordinates where weights are binary.
            A vote has `Spec.hidden` elements, of self-routing one, more than the pose of a parent: add these to the
            transform's `parent_pose`.
        routing: a registered name, or a `Routing` that was built for `transform.sizes`.
        implementation: of its steps: "plain", "fused" (a kernel, see `torchcaps.kernels`), or "auto", which is the
            faster of the two where a kernel takes this transform and routing, see `form`. It may be set afterwards;
            parameters are the same.
        options: keyword arguments of the routing, where it is a name.

    A call makes one iteration unless it is told more, as in `layer(children, 3)`; `CapsuleStack` makes three. The first
    iteration of most routings has uniform couplings.

    Raises:
        TypeError: when transform or routing are none.
        ValueError: when the two do not fit, for options beside a routing that is built already, and for "fused" where
            no kernel takes them, with the reason.
    """

    def __init__(
        self,
        transform: Transform,
        routing: str | Routing[Any] = "dynamic",
        implementation: Implementation = "auto",
        **options: object,
    ):
        super().__init__()
        if not isinstance(transform, nn.Module) or not hasattr(transform, "sizes"):
            raise TypeError(f"transform is {transform!r}; it must be one, such as LinearTransform(72, 10, 8, 16)")
        if isinstance(routing, str):
            routing = create_routing(routing, *transform.sizes, **options)
        elif not isinstance(routing, Routing):
            raise TypeError(f"routing is {routing!r}; it must be a registered name or a Routing that is built")
        elif options:
            raise ValueError(f"options {', '.join(options)} are given beside a routing that is built: give them to it")
        if routing.sizes != transform.sizes:
            raise ValueError(f"the routing was built for {routing.sizes}, but the transform has {transform.sizes}")
        if routing.spec.binary_weights and transform.place is not None:
            raise ValueError(
                f"routing {routing.spec.name!r} would leave only signs of coordinates: build the transform without them"
            )
        self.transform, self.routing = transform, routing
        self.chosen: dict[str, Form] = {}  # by kind of device, where both were timed
        self.implementation = implementation

    @property
    def implementation(self) -> Implementation:
        return self._implementation

    @implementation.setter
    def implementation(self, value: Implementation) -> None:
        kernel = find_kernel(value, self.transform, self.routing)
        self._kernel, self._routed = kernel, type(self.routing)
        self._fused = None if kernel is None else Fused(kernel.step, demanded=value == "fused")
        self._whole = None if kernel is None else find_whole(self.transform, self.routing)
        self._implementation: Implementation = value
        suits = [] if kernel is None else [each for each in DEVICES if kernel.suits(each, self.transform)]
        self._suited = frozenset(suits if value == "auto" else DEVICES)

    @property
    def fused(self) -> bool:
        """Return whether a kernel was found; steps are plain all the same while exporting, on devices that refuse it,
        and where `form` says so.
        """
        return self._fused is not None

    @property
    def kernel(self) -> Fused | None:
        """Return the kernel that was found for it, and where that was tried."""
        return self._fused

    def form(self, device: str) -> Form:
        """Return the form of its steps on a kind of device, such as "cuda": what was demanded, else what
        `torchcaps.choose` found to be faster there, else what a fixed rule on the layer's shapes says
        (`kernels/rule.py`).

        It is one for every size of a batch.
        """
        if self._fused is None or device not in DEVICES:
            return "plain"
        by_rule: Form = "fused" if device in self._suited else "plain"
        return by_rule if self._fused.demanded else self.chosen.get(device, by_rule)

    def votes(self, children: Capsules) -> Votes:
        """Return the votes of `children`, as the routing takes them. They serve all iterations while the children stay
        the same.
        """
        return self.routing.prepare(self.transform(children))

    def step(self, votes: Votes, state: Any, t: int, couplings: bool = False) -> Step[Any]:
        """Take iteration `t`; the capsules of the step have positions [b, h, w, j, d], or [b, j, d] where there is one.

        `couplings` asks for a step that holds its coupling, which only a plain one makes.

        Raises:
            ValueError: where the implementation is "fused", and kernels do not serve on the device; it says why.
        """
        if self._fused is not None and votes.device.type not in DEVICES:
            say_missing(votes.device.type, self._fused.demanded)
        fused = self._fused if self.form(votes.device.type) == "fused" and not couplings and self._fits() else None
        if fused is not None and runs_fused(votes) and fused.taken(self.routing, votes):
            step = fused.step(self.routing, votes, state, t)
        else:
            step = self.routing.step(votes, state, t)
        poses, activations = (None if x is None else _placed(_narrowed(x, votes), votes.space) for x in step.capsules)
        assert poses is not None
        return step._replace(capsules=Capsules(poses, activations))

    def _fits(self) -> bool:
        """Return whether the kernel takes the routing as it is now: its settings may have been changed since.

        Raises:
            ValueError: where it does not, and the implementation is "fused".
        """
        if self._kernel is None:
            return False
        same = type(self.routing) is self._routed
        reason = self._kernel.supports(self.transform, self.routing) if same else "it is another routing now"
        if reason is not None and self._implementation == "fused":
            raise ValueError(f"implementation is 'fused', but {reason}")
        return reason is None

    def at_once(self, children: Capsules, iterations: int) -> Step[Any] | None:
        """Return all iterations by one kernel, or None where steps are to be taken one after the other.

        There is a kernel of some routings of linear capsules. It is for inference with a few images, whose votes are at
        most half as large as the weights, see `torchcaps.routing.fused.runs_now`.
        """
        poses, columns, whole = children.poses, self.transform.shape[-2], self._whole
        if whole is None or (compiling() and not whole.compiled):
            return None
        if type(self).votes is not CapsuleLayer.votes or type(self).step is not CapsuleLayer.step:
            return None  # what takes all iterations calls neither
        if not self._fits() or whole.supports(self.transform, self.routing) is not None:
            return None
        if not runs_now(poses, self.transform.weight) or self.form("cpu") == "plain":
            return None
        if not 0 < 2 * len(poses) * poses.shape[-1] <= columns * columns:  # asked last: an export holds for any batch
            return None
        return whole.route(self.routing, self.transform(children), iterations)

    def forward(self, children: Capsules, iterations: int = 1) -> Step[Any]:
        """Return the last step of `iterations` of this layer alone, one by default."""
        (step,) = CapsuleStack([self], iterations)(children)
        return step

    def extra_repr(self) -> str:
        return "" if self._implementation == "auto" else f"implementation={self._implementation!r}"

    def fold(self) -> CapsuleLayer:
        """Return a copy for inference whose constant b_ij are folded into W_ij: one matrix product, and no routing.

        It holds uniform routing over J b_ij W_ij; outputs are equal up to rounding.

        Raises:
            ValueError: where the routing has no constant coupling (`Routing.constant_coupling`).
        """
        constant = self.routing.constant_coupling()
        if constant is None:
            raise ValueError(f"routing {self.routing.spec.name!r} has no constant coupling to fold into the weights")
        coupling = constant.detach() * self.transform.sizes.parents
        bias = self.routing.kept_bias
        folded = CapsuleLayer(self.transform.scaled(coupling), "uniform", bias=bias is not None)
        if bias is not None:
            folded.routing.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
        return folded.train(self.training)


class CapsuleStack(nn.Module):
    """Layers of capsules and the order of their iterations.

    Args:
        layers: from the primary capsules upwards, at least one.
        iterations: R, at least 1; may be changed after training, in a model by `Model.iterations`, which what builds
            the model anew then knows. A routing that is not iterative runs once; with the concurrent schedule once for
            each change of what it reads.
        schedule: "sequential" (a layer finishes first) or "concurrent" (after a first pass upwards, every layer reads
            the capsules that the layer below had in the previous iteration; Tsai et al. 2020, Procedure 2); may be
            changed as well, in a model by `Model.schedule`.

    With the concurrent schedule the last output sees layer l, counted from 0 at the top, only up to iteration R - l, or
    the first pass where that is below 1: later steps of that layer reach nothing and are left out. So with R = 2 only
    the top layer routes at all.
    """

    def __init__(self, layers: Sequence[CapsuleLayer], iterations: int = 3, schedule: Schedule = "sequential"):
        super().__init__()
        if isinstance(layers, nn.Module) and not isinstance(layers, nn.ModuleList):
            raise TypeError(f"layers is a {type(layers).__name__}; give a list of them: CapsuleStack([layer])")
        layers = list(layers)
        if not layers:
            raise ValueError("a stack of 0 layers was asked for; give at least one CapsuleLayer")
        for n, each in enumerate(layers):
            if not isinstance(each, CapsuleLayer):
                raise TypeError(f"layer {n} is {each!r}; it must be a CapsuleLayer")
        self.layers = nn.ModuleList(layers)
        self.schedule = schedule
        self.iterations = iterations

    @property
    def iterations(self) -> int:
        return self._iterations

    @iterations.setter
    def iterations(self, value: int) -> None:
        self._iterations = whole("iterations", value)

    @property
    def schedule(self) -> Schedule:
        return self._schedule

    @schedule.setter
    def schedule(self, value: Schedule) -> None:
        check_choice("schedule", value, get_args(Schedule))
        self._schedule: Schedule = value

    def plan(self) -> list[tuple[int, int]]:
        """Return the steps that reach the output, in order, as (layer, iteration), both from 0.

        A concurrent iteration goes from the top down, so that each layer reads what is not yet renewed.
        """
        top, layers = len(self.layers) - 1, self._layers()
        if self.schedule == "sequential":
            rounds = [self.iterations if layer.routing.spec.iterative else 1 for layer in layers]
            return [(level, t) for level in range(top + 1) for t in range(rounds[level])]
        steps = [(level, 0) for level in range(top + 1)]
        renewed = [0] * len(layers)  # the iteration of each layer's capsules
        read = [0] * len(layers)  # that of the capsules below, which these were made of
        for t in range(1, self.iterations):
            for level in range(top, -1, -1):
                below = renewed[level - 1] if level else 0
                if t > self.iterations - 1 - (top - level) or (
                    not layers[level].routing.spec.iterative and below == read[level]
                ):
                    continue
                steps.append((level, t))
                renewed[level], read[level] = t, below
        return steps

    def forward(
        self, children: Capsules, visit: Callable[[int, int, Step[Any]], None] | None = None
    ) -> tuple[Step[Any], ...]:
        """Route `children` upwards.

        Args:
            children: primary capsules, poses [b, h, w, i, d] or [b, i, d].
            visit: called with (layer, iteration, step) after each step, for inspection; its steps are plain ones,
                which hold their couplings.

        Returns:
            The last step of each layer that reaches the output, bottom first.
        """
        check_capsules(children)
        layers = self._layers()
        steps: dict[int, Step[Any]] = {}
        votes: dict[int, tuple[Capsules, Votes]] = {}
        done: set[int] = set()  # layers that took all their iterations at once
        for level, t in self.plan():
            if level in done:
                continue
            layer = layers[level]
            source = steps[level - 1].capsules if level else children
            if t == 0 and visit is None and self.schedule == "sequential":
                found = layer.at_once(source, self.iterations)
                if found is not None:
                    steps[level] = found
                    done.add(level)
                    continue
            if level not in votes or votes[level][0] is not source:
                votes[level] = (source, layer.votes(source))
            current = votes[level][1]
            state = steps[level].state if t else layer.routing.start(current)
            steps[level] = layer.step(current, state, t, couplings=visit is not None)
            if visit is not None:
                visit(level, t, steps[level])
        return tuple(steps[level] for level in range(len(layers)))

    def coefficients(self) -> list[nn.Parameter]:
        """Return the parameters of all layers that are learnt by the objective of the top layer."""
        return [parameter for layer in self._layers() for parameter in layer.routing.coefficients()]

    def objective(self, steps: Sequence[Step[Any]], targets: Tensor, batch: int | None = None) -> Tensor:
        """Return what `coefficients` maximise: the top layer's objective, a mean, less every layer's penalty over
        the batch.

        Hidden capsules have no labels; their coefficients take their gradient through the layers above.

        Args:
            steps: of the layers, as `forward` returned them.
            targets: [b, j] of 0 and 1, of the class capsules.
            batch: images of the joint batch, of which several processes have each a share; None: those of `targets`.
        """
        layers = self._layers()
        routings = [layer.routing for layer in layers if layer.routing.spec.objective]
        goal = layers[-1].routing.objective(steps[-1].state, targets)
        return goal - sum(routing.penalty() for routing in routings) / (batch or len(targets))

    def extra_repr(self) -> str:
        return f"iterations={self.iterations}" + f", schedule={self.schedule!r}" * (self.schedule != "sequential")

    def _layers(self) -> list[CapsuleLayer]:
        return list(self.layers)  # pyright: ignore[reportReturnType]


def use_implementation(module: nn.Module, implementation: Implementation) -> None:
    """Set the implementation of every capsule layer in `module`: a stack, or a whole model.

    Raises:
        ValueError: for "fused" where one of the layers has no kernel; then none of them is changed.
    """
    layers = [each for each in module.modules() if isinstance(each, CapsuleLayer)]
    before: list[Implementation] = [each.implementation for each in layers]
    try:
        for each in layers:
            each.implementation = implementation
    except ValueError:
        for each, old in zip(layers, before, strict=True):
            each.implementation = old
        raise


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Have `module` in evaluation mode while this is entered; each part of it is in its own mode again afterwards."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


@contextmanager
def plain_steps(module: nn.Module) -> Iterator[None]:
    """Have every capsule layer in `module` take plain steps while this is entered."""
    layers: list[tuple[CapsuleLayer, Implementation]] = [
        (each, each.implementation) for each in module.modules() if isinstance(each, CapsuleLayer)
    ]
    use_implementation(module, "plain")
    try:
        yield
    finally:
        for layer, implementation in layers:
            layer.implementation = implementation


def _narrowed(x: Tensor, votes: Votes) -> Tensor:
    """Return `x` in the type of the layer, whatever its sums were taken in; under autocast as it is."""
    if x.dtype == votes.dtype or autocast_type(votes.device) is not None:
        return x
    return saturate(x, votes.dtype)


def _placed(x: Tensor, space: tuple[int, ...]) -> Tensor:
    """Return [b, p, ...] -> [b, *space, ...]."""
    return x.unflatten(1, space) if space else x.squeeze(1)
