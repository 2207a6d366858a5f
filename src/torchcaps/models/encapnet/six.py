"""The six-layer networks of EncapNet's Table 1 and figure 2 (Li et al. 2018, section A.i).

Four convolutions with batch norm and ReLU take 32 pixels to 8x8 positions of 256 channels, 32 types of 8. The printed
stride of 3 cannot give 8x8: strides are 1, 1, 2, 2. The fifth and the sixth layer are of capsules (or a convolution and
a linear layer). The transforms are a grouped convolution's, so all positions share them, each vote has a bias, and each
position of the layer above is a parent of its own: 2048 children vote for 2048 parents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchcaps.backbones.interface import Backbone, Window
from torchcaps.capsules import Capsules
from torchcaps.encapnet import CapConvModule, to_capsules
from torchcaps.encapnet.capconv import check_aide
from torchcaps.layers import CapsuleLayer, CapsuleStack, Transform, flatten_space
from torchcaps.models.encapnet.feedback import register_with_feedback
from torchcaps.models.encapnet.network import CapsuleStages, Shrink, conv_block, halved
from torchcaps.models.encapnet.staged import StagedModel
from torchcaps.models.network import ActivationHead, CapsuleNetwork, LengthHead
from torchcaps.models.registry import Model, register_model
from torchcaps.routing.dynamic import Dynamic
from torchcaps.routing.em import EM
from torchcaps.routing.interface import Routing, Sizes, Start
from torchcaps.votes import LinearVotes, Over, Votes
from torchcaps.votes.shared import SharedVotes

POSE, CLASS_POSE = 8, 16
EM_STD, EM_APART, EM_FLOOR = 0.4, 0.1, 0.1  # of EM routing's start, see `em_transforms`, and of its variances
REPEATED = 2**24  # weights at most, where each child has its own for EM's fused step


class SixStem(Backbone):
    """Four convolutions 3x3 with strides 1, 1, 2, 2, each with batch norm and ReLU.

    Args:
        in_channels: of the images.
        channels: of the first, at least 1; the second and third have twice as many as the one before.
        last: of the fourth.
        relu: whether the fourth has one.
    """

    def __init__(self, in_channels: int, channels: int, last: int, relu: bool = True):
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels is {channels}; it must be at least 1")
        widths, strides = (in_channels, channels, 2 * channels, 4 * channels, last), (1, 1, 2, 2)
        self.windows = tuple(Window(3, stride, 1) for stride in strides)
        self.channels = last
        blocks = [conv_block(a, b, stride) for (a, b), stride in zip(pairwise(widths), strides, strict=True)]
        self.layers = nn.Sequential(*blocks[:-1], blocks[-1] if relu else blocks[-1][:2])

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class AsCapsules(nn.Module):
    """Maps through a ReLU as poses; further maps, one for each type, are the logits of activations."""

    def __init__(self, types: int):
        super().__init__()
        self.types = types

    def forward(self, maps: Tensor) -> Capsules:
        """Map [b, (i d), h, w] -> poses [b, h, w, i, d]; of i channels more also activations [b, h, w, i]."""
        poses, logits = maps.split((self.types * POSE, maps.shape[1] - self.types * POSE), 1)
        activations = logits.sigmoid().movedim(1, -1) if logits.shape[1] else None
        return to_capsules(poses.relu(), self.types)._replace(activations=activations)


class BiasedTransform(Transform):
    """Votes W u + b, with W and b of each type and parent: a constant joins each pose, whose weights are the bias.

    W starts normal and b from zero: one as large as W is nearly all of a mean of votes of many directions, which then
    says nothing of the image.

    Args:
        types, positions: of the children, which are their product, ordered (type, position).
        parents, child_pose, parent_pose: see `Transform`.
        std: of the initial W.
        apart: share of `std` by which the W of a type differ from parent to parent, the rest being common to them; 1:
            they are independent.
    """

    makes = SharedVotes

    def __init__(
        self,
        types: int,
        positions: int,
        parents: int,
        child_pose: int,
        parent_pose: int,
        std: float,
        apart: float = 1.0,
    ):
        self.apart = apart  # first, since the constructor draws the weights
        super().__init__((types,), parents, child_pose + 1, parent_pose, std=std, shared=positions)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.apart < 1:
            common = math.sqrt(1 - self.apart**2) * self.std * torch.randn_like(self.weight[:1])
            self.weight.mul_(self.apart).add_(common)
        self.weight[..., -1, :] = 0

    def vote(self, children: Capsules, weight: Tensor, binary: bool = False) -> Votes:
        return SharedVotes(with_constant(children), weight, self.shared, binary)


class RepeatedTransform(BiasedTransform):
    """The same votes of a W for each child, repeated from that of its type: fused steps know these."""

    makes = LinearVotes

    def vote(self, children: Capsules, weight: Tensor, binary: bool = False) -> Votes:
        return LinearVotes(with_constant(children), self._unshared(weight), binary=binary)


def with_constant(children: Capsules) -> Capsules:
    """Map [b, *space, i, d] -> [b, (i *space), d + 1], the last element being 1."""
    poses, activations = flatten_space(children)
    return Capsules(F.pad(poses, (0, 1), value=1.0), activations)


class Layer(NamedTuple):
    """The fifth or the sixth layer."""

    types: int  # of children
    positions: int
    parents: int
    pose: int  # of a child


def dynamic_transforms(fifth: Layer, sixth: Layer) -> list[BiasedTransform]:
    """Return transforms with which dynamic routing starts in reach of the squash: neither at lengths of 0 nor of 1.

    The mean of n votes of independent W is shorter by sqrt(n) than a vote. Were its length kept, votes would be so long
    that routing saturates in its second step. They have the length n^(1/6), by which a step adds about a 16th to the
    sum that it starts from. In the fifth layer all positions share W, so that n counts types alone, and parents may be
    longer: votes are too, by 1.4. In the sixth each child has been through a W of its own.
    """
    pooled = math.sqrt(POSE / (2 * math.pi))  # length of the mean of poses that are the ReLU of normal numbers
    first = 1.4 * fifth.types ** (1 / 6) / (pooled * math.sqrt(CLASS_POSE))
    last = (sixth.types * sixth.positions) ** (1 / 6) / (0.5 * math.sqrt(CLASS_POSE))  # for children of length 1/2
    return [BiasedTransform(*layer, CLASS_POSE, std) for layer, std in ((fifth, first), (sixth, last))]


def em_transforms(*layers: Layer) -> list[BiasedTransform]:
    """Return transforms with which EM routing starts soft: the votes of a child for all parents are nearly alike.

    Votes of independent W are noise to each cluster, of which there are as many as children in the fifth layer: three
    iterations then gave each cluster a child or two, anew for each image, and gradients of two batches had nothing in
    common.
    """
    transforms = []
    for layer in layers:
        weights = layer.types * layer.positions * layer.parents * (layer.pose + 1) * CLASS_POSE
        kind = RepeatedTransform if weights <= REPEATED else BiasedTransform
        transforms.append(kind(*layer, CLASS_POSE, EM_STD, EM_APART))
    return transforms


def build_capnet(
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    types: int,
    channels: int,
    grid: int,
    iterations: int,
    routing: Callable[[Sizes], Routing],
    start: Callable[[Layer, Layer], list[BiasedTransform]],
) -> CapsuleNetwork:
    """Return the network of both routings; `routing` makes one of a layer's sizes, `start` the transforms of both
    layers.
    """
    if min(types, grid) < 1:
        raise ValueError(f"types is {types} and grid {grid}; they must be at least 1")
    height, width = (min(grid, side) for side in halved(image_size, 2))
    positions = height * width
    transforms = start(
        Layer(types, positions, types * positions, POSE), Layer(types, positions, num_classes, CLASS_POSE)
    )
    layers = [CapsuleLayer(transform, routing(transform.sizes)) for transform in transforms]
    active = layers[0].routing.spec.needs_activations
    backbone = SixStem(in_channels, channels, types * (POSE + active), relu=False)
    primary = nn.Sequential(Shrink(grid), AsCapsules(types))
    return CapsuleNetwork(
        backbone, primary, CapsuleStack(layers, iterations), ActivationHead() if active else LengthHead()
    )


@register_model("capnet-6-dynamic")
def capnet_6_dynamic(
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    types: int = 32,
    channels: int = 32,
    grid: int = 8,
    iterations: int = 3,
    over: Over = "children",
    start: Start = "zero",
) -> Model:
    """Return the network of Table 1 (a): dynamic routing, in which children compete; scores are lengths.

    Args:
        num_classes, in_channels, image_size: of the data.
        types: of the fifth layer's children and of its parents, at each position.
        channels: of the first convolution.
        grid: positions a side that larger maps are averaged to before the fifth layer, whose votes grow with its fourth
            power; 32 pixels leave 8.
        iterations: of both layers (R).
        over, start: see `Dynamic`; Table 5 compares the starts.
    """
    sizes = num_classes, in_channels, image_size, types, channels, grid, iterations
    return build_capnet(*sizes, partial(Dynamic, over=over, start=start), dynamic_transforms)


@register_model("capnet-6-em")
def capnet_6_em(
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    types: int = 32,
    channels: int = 32,
    grid: int = 8,
    iterations: int = 3,
    normalise: bool = True,
    eps: float = EM_FLOOR,
) -> Model:
    """Return the network of Table 1 (b): EM routing with vector poses, to which the fourth convolution gives
    activations too; scores are those of the class capsules.

    Args:
        num_classes, in_channels, image_size, types, channels, grid, iterations: see `capnet_6_dynamic`.
        normalise: standardise what the sigmoid of an activation is given, which the paper finds crucial.
        eps: floor of the variances, see `EM`; about those of the first votes.
    """
    sizes = num_classes, in_channels, image_size, types, channels, grid, iterations
    return build_capnet(*sizes, partial(EM, normalise=normalise, eps=eps), em_transforms)


def cnn_6(num_classes: int, in_channels: int, image_size: tuple[int, int], channels: int = 32) -> StagedModel:
    """Return the network of Table 1 (c) and (d): five convolutions, average pooling, a linear layer; scores are logits.

    Args:
        num_classes, in_channels, image_size: of the data.
        channels: of the first convolution; each other one has twice as many as the one before, so that maps have the
            shapes of CapNet's where `channels` is its number of types.
    """
    first, *others = SixStem(in_channels, channels, 8 * channels).layers.children()
    stages = [nn.Sequential(layer) for layer in (*others, conv_block(8 * channels, 16 * channels))]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16 * channels, num_classes))
    return StagedModel(first, stages, head, (in_channels, *image_size))


def encapnet_6(
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    types: int = 32,
    channels: int = 32,
    version: str = "v3",
    aide: Literal["others", "all"] = "others",
    aide_extra: int = 4,
    branch_norm: bool = False,
    affine: bool = False,
) -> CapsuleStages:
    """Return the network of Table 1 (e) and (f): one capConv layer with a skip, and a capFC layer; scores are lengths.

    Without `affine` the master alone has the 1,687,808 parameters that the table's number stands for.

    Args:
        num_classes, in_channels, image_size: of the data.
        types: of capsules.
        channels: of the first convolution.
        version, aide, aide_extra, branch_norm, affine: see `MasterAideConv2d`.

    Raises:
        ValueError: for sizes that the layers cannot take, and for settings of an aide where `version` has none.
    """
    check_aide(version, aide, aide_extra, branch_norm)
    module = CapConvModule(
        types,
        POSE,
        CLASS_POSE,
        length=0,
        stride=2,
        skip="type-1",
        version=version,
        aide=aide,
        aide_extra=aide_extra,
        branch_norm=branch_norm,
        affine=affine,
    )
    stem, image = SixStem(in_channels, channels, types * POSE), (in_channels, *image_size)
    return CapsuleStages(stem, [module], num_classes, types, CLASS_POSE, image, halvings=3)


register_with_feedback("cnn-6", cnn_6)
register_with_feedback("cnn-6-wide", cnn_6, channels=79)  # all widths grow; the paper does not say which
register_with_feedback("encapnet-6-master", encapnet_6, version="master")
register_with_feedback("encapnet-6-master-aide", encapnet_6)
