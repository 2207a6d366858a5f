"""Capsule heads: routed class capsules on the features of any network (Sun et al. 2023, figure 1b)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, get_args

import torch
from torch import Tensor, nn

from torchcaps.capsules import Capsules, squash
from torchcaps.config import ScoreKind
from torchcaps.layers import CapsuleLayer, CapsuleStack, LinearTransform, PrimaryCapsules, PrimaryPoses, Transform
from torchcaps.models.network import read_classes
from torchcaps.models.registry import Model, Output
from torchcaps.names import whole
from torchcaps.routing import Spec, Takes, routing_class

PRIMARY_TYPES = 32  # of primary capsules on a map


def takes_vectors(routing: str) -> bool:
    """Return whether a registered routing takes squashed vectors without activations, as `PrimaryCapsules` makes
    them.
    """
    spec = routing_class(routing).spec
    return spec.takes.squashed and not spec.takes.matrix and not spec.needs_activations


class Widen(nn.Linear):
    """Features [b, f] to the next whole number of capsules: what a feature count that no pose divides costs."""


class PooledCapsules(nn.Module):
    """Features [b, f], cut into poses as they stand.

    Args:
        features: f. Where `pose` does not divide it, a linear layer widens it to the next multiple.
        pose: elements of a pose.
        takes: what is done to the poses.
        activations: whether each capsule has one, by a linear layer and a sigmoid.
    """

    def __init__(self, features: int, pose: int, takes: Takes, activations: bool):
        super().__init__()
        self.pose, self.squashed = pose, takes.squashed
        self.capsules = math.ceil(features / pose)
        self.widen = Widen(features, self.capsules * pose) if features % pose else nn.Identity()
        self.norm = nn.LayerNorm(pose) if takes.layer_norm else nn.Identity()
        self.activation = nn.Linear(features, self.capsules) if activations else None

    def forward(self, features: Tensor) -> Capsules:
        """Map features [b, f] -> poses [b, i, d] and activations [b, i] in (0, 1), or None."""
        poses = self.norm(self.widen(features).unflatten(-1, (self.capsules, self.pose)))
        poses = squash(poses) if self.squashed else poses
        return Capsules(poses, None if self.activation is None else self.activation(features).sigmoid())


class RoutedHead(nn.Module):
    """Primary capsules, a stack whose last layer holds the class capsules, and what reads scores of these."""

    primary: nn.Module
    stack: CapsuleStack
    read: nn.Module
    in_shape: tuple[int | None, ...] | None = None  # of one image's features, None for a side that may be any

    @property
    def scores(self) -> ScoreKind | None:
        """Return what a score is, see `Model.scores`."""
        return getattr(self.read, "scores", None)

    def forward(self, features: Tensor) -> Output:
        """Map features [b, f] or [b, c, h, w] -> `Output`.

        Raises:
            ValueError: for features of another shape than the head was built for.
        """
        check_features(features, self.in_shape)
        primary = self.primary(features)
        steps = self.stack(primary)
        capsules = (primary, *(step.capsules for step in steps))
        return Output(self.read(capsules[-1]), capsules, {"steps": steps})


def check_features(features: Tensor, in_shape: tuple[int | None, ...] | None) -> None:
    """Raise ValueError unless one image's features have `in_shape`, where a side that is None may be any."""
    if not isinstance(features, Tensor):
        raise TypeError(f"the features are a {type(features).__name__}; a head takes a tensor [b, f] or [b, c, h, w]")
    if in_shape is None:
        return
    found = tuple(features.shape[1:])
    if len(found) != len(in_shape) or any(n not in (None, m) for n, m in zip(in_shape, found, strict=True)):
        wanted = ", ".join("any" if n is None else str(n) for n in in_shape)
        raise ValueError(
            f"the features of an image are {list(found)}, but the head was built for [{wanted}]: build it with "
            f"in_features={found[0] if len(found) == 1 else found}"
        )


class CapsuleHead(RoutedHead):
    """Features to class capsules and scores, by any registered routing.

    Pooled features [b, f] are cut into capsules of `pose`, without a parameter where it divides f (the paper's 160 of
    MobileNet V2 and 256 of ResNet-50). Maps [b, c, h, w] pass through primary capsules, a 1x1 convolution. Poses are
    squashed vectors of 8; EM, variational Bayes and inverted attention take 4x4 matrices, the first two with
    activations, inverted attention with layer norm; FM agreement and, with activations, self-routing take vectors as
    they are.

    Scores are the lengths of the class capsules, in [0, 1); the activations of EM and variational Bayes, in (0, 1), of
    self-routing, which add up to 1, and of FM agreement, logits; of inverted attention logits, one linear map of a pose
    to a number that all classes share.

    Args:
        routing: a registered name.
        in_features: f, or (c, h, w) of a map.
        num_classes: class capsules, at least 1.
        pose: elements of a child's pose; None: 8, or 16 of a matrix.
        class_pose: elements of a class capsule's pose.
        primary: types of primary capsules on a map, not of pooled features; None: as many as make about as many numbers
            as there are channels.
        iterations: of the routing, at least 1.
        scaled: multiply the scores by a learnt number, which makes logits of lengths and activations: it starts at 10
            for those in [0, 1), and at 1 for logits.
        routing_options: keyword arguments of the routing.
        hidden: capsules, of `class_pose` elements, in each layer between the primary and the class capsules.
        options: the same, but for those that are named as an argument above, and `implementation` of the layer.

    Raises:
        ValueError: for unknown routings and options, and for sizes below 1 or that do not fit.
    """

    def __init__(
        self,
        routing: str,
        in_features: int | tuple[int, ...],
        num_classes: int,
        pose: int | None = None,
        class_pose: int = 16,
        primary: int | None = PRIMARY_TYPES,
        iterations: int = 3,
        scaled: bool = False,
        routing_options: Mapping[str, object] | None = None,
        hidden: Sequence[int] = (),
        **options: Any,
    ):
        super().__init__()
        options |= routing_options or {}
        spec = routing_class(routing).spec
        takes = spec.takes
        shape = self.in_shape = feature_shape(in_features)
        num_classes, class_pose = whole("num_classes", num_classes), whole("class_pose", class_pose)
        pose = whole("pose", (16 if takes.matrix else 8) if pose is None else pose)
        given, primary = primary, whole("primary", max(1, shape[0] // pose) if primary is None else primary)
        hidden = hidden_counts(hidden)
        if len(shape) == 1:
            if given not in (None, PRIMARY_TYPES):
                raise ValueError(
                    f"primary is {given}, but pooled features are cut into capsules as they stand: leave it out, or "
                    "give the head maps (features 'spatial' of a timm backbone)"
                )
            self.primary: nn.Module = PooledCapsules(shape[0], pose, takes, spec.needs_activations)
            children = self.primary.capsules
        else:
            self.primary = _spatial_capsules(shape[0], primary, pose, takes, spec.needs_activations)
            children = primary * shape[1] * shape[2]
        counts, poses = (children, *hidden, num_classes), (pose, *[class_pose] * (len(hidden) + 1))
        layers = []
        for (below, above), (child, parent) in zip(pairwise(counts), pairwise(poses), strict=True):
            transform = LinearTransform(below, above, child, parent + spec.hidden, matrix=takes.matrix)
            silence_hidden(transform, spec)
            layers.append(CapsuleLayer(transform, routing, **options))
        self.stack = CapsuleStack(layers, iterations)
        self.read = choose_reader(routing, class_pose, scaled)


def feature_shape(in_features: object) -> tuple[int, ...]:
    """Return (f,), or (channels, height, width).

    Raises:
        ValueError: for what is neither, all at least 1.
    """
    given = in_features if isinstance(in_features, Sequence) and not isinstance(in_features, str) else (in_features,)
    try:
        shape = tuple(whole("in_features", each) for each in given)
    except ValueError:
        shape = ()
    if len(shape) not in (1, 3):
        raise ValueError(
            f"in_features is {in_features!r}; it must be a number, or (channels, height, width), each at least 1"
        )
    return shape


def hidden_counts(hidden: object) -> tuple[int, ...]:
    """Return how many capsules or outputs each hidden layer has.

    Raises:
        ValueError: for what is no sequence of whole numbers, each at least 1.
    """
    try:
        return tuple(whole("hidden", each) for each in hidden)  # pyright: ignore[reportGeneralTypeIssues]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"hidden is {hidden!r}; each layer must have at least 1 capsule or output, a whole number"
        ) from error


@torch.no_grad()
def silence_hidden(transform: Transform, spec: Spec) -> None:
    """Start the elements of votes that serve the routing alone from zero, where all parents get the same."""
    if spec.hidden:
        transform.weight[..., -spec.hidden :] = 0


def choose_reader(routing: str, class_pose: int, scaled: bool) -> nn.Module:
    """Return what makes scores of the class capsules of a routing, see `CapsuleHead`."""
    read = read_classes(routing_class(routing).spec, class_pose)
    return Scaled(read, 1.0 if read.scores == "logit" else 10.0) if scaled else read


class Scaled(nn.Module):
    """What `read` says of capsules, times a learnt number."""

    scores: ScoreKind = "logit"

    def __init__(self, read: nn.Module, start: float):
        super().__init__()
        self.read, self.scale = read, nn.Parameter(torch.tensor(start))

    def forward(self, capsules: Capsules) -> Tensor:
        return self.scale * self.read(capsules)


def _spatial_capsules(channels: int, capsules: int, pose: int, takes: Takes, activations: bool) -> nn.Module:
    if takes.squashed and not activations:
        return PrimaryCapsules(channels, capsules, pose, kernel=1, stride=1)
    return PrimaryPoses(channels, capsules, pose, layer_norm=takes.layer_norm, activations=activations)


class DenseHead(nn.Module):
    """Fully connected layers with ReLU between them: what capsule heads replace. Scores are logits.

    Args:
        in_features: f, or the shape of what is flattened.
        num_classes: outputs of the last layer.
        hidden: outputs of the layers before it, each at least 1; () is one linear layer.
    """

    scores: ScoreKind = "logit"

    def __init__(self, in_features: int | tuple[int, ...], num_classes: int, hidden: Sequence[int] = ()):
        super().__init__()
        shape = (in_features,) if not isinstance(in_features, Sequence) else in_features
        self.features = math.prod(whole("in_features", each) for each in shape)
        widths = [self.features, *hidden_counts(hidden), whole("num_classes", num_classes)]
        layers: list[nn.Module] = []
        for width, out in pairwise(widths):
            layers += [nn.Linear(width, out), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, features: Tensor) -> Output:
        """Map features [b, ...] -> `Output`.

        Raises:
            ValueError: for another number of features than the head was built for.
        """
        flat = features.flatten(1)
        check_features(flat, (self.features,))
        return Output(self.layers(flat), (), {})


class HeadedModel(Model):
    """A network of your own under a head, ready to train, measure and export.

    Args:
        backbone: from images [b, c, h, w] to the features that `head` takes.
        head: `CapsuleHead`, `DenseHead`, or what else maps features to scores [b, classes] or an `Output`; its `scores`
            say what these are.

    Raises:
        TypeError: when one of the two is no module.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        for what, module in (("backbone", backbone), ("head", head)):
            if not isinstance(module, nn.Module):
                raise TypeError(f"{what} is {module!r}; it must be a module that is built, an instance of nn.Module")
        self.backbone, self.head = backbone, head

    @property
    def scores(self) -> ScoreKind | None:
        said = getattr(self.head, "scores", None)
        return said if said in get_args(ScoreKind) else None

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        found = self.head(self.backbone(images))
        return found if isinstance(found, Output) else Output(found)

    def coefficients(self) -> list[nn.Parameter]:
        return self.head.stack.coefficients() if isinstance(self.head, RoutedHead) else []

    def objective(self, output: Output, targets: Tensor, batch: int | None = None) -> Tensor:
        if not isinstance(self.head, RoutedHead):
            return super().objective(output, targets, batch)
        return self.head.stack.objective(output.aux["steps"], targets, batch)
