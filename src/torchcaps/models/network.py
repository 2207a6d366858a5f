"""Networks of capsules in four parts, and the pieces that several papers' networks share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

from torch import Tensor, nn

from torchcaps.backbones.interface import Backbone, Window
from torchcaps.backbones.resnet import capsule_resnet
from torchcaps.backbones.simple import HALVING, SimpleBackbone
from torchcaps.capsules import Capsules, lengths
from torchcaps.config import ScoreKind
from torchcaps.layers import CapsuleStack, ConvTransform, Coordinates, LinearTransform, PooledTransform, Transform
from torchcaps.models.registry import Model, Output
from torchcaps.names import check_choice
from torchcaps.routing import Spec

Positions = Literal["own", "shared", "pooled"]  # whose transforms a linear layer above positions has


class CapsuleNetwork(Model):
    """Images through `backbone`, `primary`, `stack` and `head` to scores.

    Args:
        backbone: from images to features.
        primary: from features to `Capsules`.
        stack: its last layer holds the class capsules.
        head: from the class capsules to scores [b, classes]; what its `scores` says of them, the network says.
    """

    def __init__(self, backbone: Backbone, primary: nn.Module, stack: CapsuleStack, head: nn.Module):
        super().__init__()
        self.backbone, self.primary, self.stack, self.head = backbone, primary, stack, head

    @property
    def scores(self) -> ScoreKind | None:
        return getattr(self.head, "scores", None)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        primary = self.primary(self.backbone(images))
        steps = self.stack(primary)
        capsules = (primary, *(step.capsules for step in steps))
        return Output(self.head(capsules[-1]), capsules, {"steps": steps})


class PoseHead(nn.Module):
    """A logit of each class capsule: one linear map of a pose to a number, shared by all classes.

    Where capsules have activations, a pose counts by its own.

    Args:
        pose: elements of one.
        gain: what poses are multiplied by before.
    """

    scores: ScoreKind = "logit"

    def __init__(self, pose: int, gain: float = 1.0):
        super().__init__()
        self.linear, self.gain = nn.Linear(pose, 1), gain

    def forward(self, classes: Capsules) -> Tensor:
        poses, activations = classes
        if self.gain != 1:
            poses = poses * self.gain
        return self.linear(poses if activations is None else poses * activations.unsqueeze(-1)).squeeze(-1)


class LengthHead(nn.Module):
    """The length of each class capsule."""

    scores: ScoreKind = "length"

    def forward(self, classes: Capsules) -> Tensor:
        return lengths(classes.poses)


class ActivationHead(nn.Module):
    """The activation of each class capsule.

    Args:
        scores: what an activation is, as `Spec.activation` says.
    """

    def __init__(self, scores: ScoreKind = "probability"):
        super().__init__()
        self.scores: ScoreKind = scores

    def forward(self, classes: Capsules) -> Tensor:
        assert classes.activations is not None
        return classes.activations


def read_classes(spec: Spec, pose: int) -> PoseHead | ActivationHead | LengthHead:
    """Return what makes a score of each class capsule: its activation where the routing gives any, else its length.

    Layer norm keeps all poses equally long, so that their length says nothing: there a score is one linear map of the
    pose to a number (Tsai et al. 2020).

    Args:
        spec: of the routing.
        pose: elements of a class capsule.
    """
    if spec.takes.layer_norm:
        return PoseHead(pose)
    return ActivationHead(spec.activation) if spec.gives_activations else LengthHead()


def choose_backbone(
    name: str, in_channels: int, channels: int, window: Window = HALVING, batch_norm: bool = False
) -> Backbone:
    """Return the "simple" backbone with this window and batch norm, or the "resnet" one, which takes neither.

    Raises:
        ValueError: for another name, and for channels that it cannot have.
    """
    check_choice("backbone", name, ("simple", "resnet"))
    if name == "resnet":
        return capsule_resnet(in_channels, channels)
    return SimpleBackbone(in_channels, channels, window, batch_norm)


def conv_windows(strides: Sequence[int]) -> list[Window]:
    """Return the windows of layers of convolutional capsules with these strides: 3x3, without padding."""
    return [Window(3, stride) for stride in strides]


def conv_transforms(
    strides: Sequence[int],
    capsules: int,
    pose: int,
    matrix: bool = True,
    std: float | None = None,
    scrambled: bool = False,
) -> list[Transform]:
    """Return one for each of `conv_windows`, from `capsules` at a position to as many, all of `pose` elements.

    `matrix`, `std` and `scrambled` are those of `ConvTransform`.
    """
    return [
        ConvTransform(capsules, capsules, pose, pose, kernel, stride, padding, matrix, std, scrambled=scrambled)
        for kernel, stride, padding in conv_windows(strides)
    ]


def placed_transform(
    capsules: int,
    places: int,
    above: int,
    pose: int,
    matrix: bool = True,
    positions: Positions = "own",
    coordinates: bool | Coordinates = False,
) -> LinearTransform:
    """Return the transform from `capsules` at each of `places` to `above` capsules without positions, all of `pose`
    elements.

    Args:
        capsules, places: types at a position, and height times width.
        above, pose, matrix: of the linear layer, see `Transform`.
        positions: each has transforms of its "own"; or all have "shared" ones, as the class layer of Hinton et al.
            (2018); or poses are "pooled", averaged over them first. Then the parameters do not grow with the image.
        coordinates: tell the votes of shared transforms where a child stands.

    Raises:
        ValueError: for another word, and for coordinates where transforms are not shared.
    """
    check_choice("positions", positions, get_args(Positions))
    if coordinates and positions != "shared":
        raise ValueError(f"coordinates tell shared transforms where a child stands, but positions is {positions!r}")
    if positions == "pooled":
        return PooledTransform(capsules, above, pose, pose, matrix)
    shared = places if positions == "shared" else 1
    return LinearTransform(capsules * places, above, pose, pose, matrix, coordinates=coordinates, shared=shared)


def linear_transforms(
    counts: Sequence[int], pose: int, matrix: bool = True, std: float | None = None
) -> list[Transform]:
    """Return the transforms from `counts[0]` capsules to `counts[1]`, and so on up to the classes, all of `pose`
    elements.

    `matrix` and `std` are those of `Transform`.
    """
    return [LinearTransform(below, above, pose, pose, matrix, std) for below, above in pairwise(counts)]
