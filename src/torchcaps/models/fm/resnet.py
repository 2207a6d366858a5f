"""The residual capsule network of FM agreement (Zhao, Wang and Huang 2020, figure 3), with any routing of its paper.

ResNet-v2 blocks, primary capsules with batch norm and squash, and layers of 4x4 matrix capsules, each: transform, batch
norm of the votes, votes of length one, FM agreement. Hidden layers hand the raw sums s on; the activation a of the last
layer is the logit of a class, and its pose s / |s| is what a decoder sees.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, cast

from torch import Tensor, nn

from torchcaps.backbones.interface import Window, count_positions
from torchcaps.backbones.resnet_v2 import ResNetV2
from torchcaps.capsules import Capsules, lengths, squash
from torchcaps.config import ScoreKind
from torchcaps.layers import CapsuleLayer, CapsuleStack, LinearTransform
from torchcaps.layers.decoders import DeconvDecoder, chosen_class
from torchcaps.layers.keras import EPS, MOMENTUM
from torchcaps.layers.normalised import NormalisedPrimary, NormalisedTransform, keeping_std
from torchcaps.models.images import AFFNIST, CIFAR10, MULTIMNIST, SMALLNORB
from torchcaps.models.network import CapsuleNetwork, read_classes
from torchcaps.models.registry import Output, register_variant
from torchcaps.names import check_choice
from torchcaps.routing import routing_class
from torchcaps.votes.protocol import Each

PRIMARY = Window(5, 2, 2)
BATCH_NORMS = ("element", "child", "pair", "none")
SCORES = ("activation", "squash")
SQUASHED = ("dynamic", "uniform")  # whose first parents are the squash of the sum of all votes over J


class SquashHead(nn.Module):
    """|s|^2 / (1 + |s|^2), the length of each squashed class capsule: the activation of Zhao et al.'s code."""

    scores: ScoreKind = "length"

    def forward(self, classes: Capsules) -> Tensor:
        return lengths(squash(classes.poses))


class FMResNet(CapsuleNetwork):
    """A `CapsuleNetwork` with a decoder of its winning capsule.

    Args:
        backbone, primary, stack, head: see `CapsuleNetwork`.
        decoder: None: nothing is reconstructed.
        squashed: whether the decoder takes poses squashed.
    """

    def __init__(
        self,
        backbone: ResNetV2,
        primary: NormalisedPrimary,
        stack: CapsuleStack,
        head: nn.Module,
        decoder: DeconvDecoder | None = None,
        squashed: bool = False,
    ):
        super().__init__(backbone, primary, stack, head)
        self.decoder, self.squashed = decoder, squashed

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        """Map images [b, c, h, w] -> `Output`; scores [b, classes] are activations, of FM agreement logits."""
        output = super().forward(images)
        if self.decoder is not None:
            chosen = chosen_class(output.scores, labels)
            decoded = self.reconstruct(output.capsules[-1].poses, chosen)
            output = output._replace(aux={**output.aux, "reconstruction": decoded})
        return output

    def reconstruct(self, poses: Tensor, chosen: Tensor) -> Tensor:
        if self.decoder is None:
            return super().reconstruct(poses, chosen)
        return self.decoder(squash(poses) if self.squashed else poses, chosen)


def build_layer(
    children: int, parents: int, pose: int, matrix: bool, batch_norm: str, routing: str, **options: Any
) -> CapsuleLayer:
    """Return one layer: transform, batch norm of the votes, routing; `options` are the routing's, all else as for
    `fm_resnet`.

    FM's batch norm is its own, so that a kernel may take it; other routings get votes that are normalised already.
    """
    sizes = (children, parents, pose, pose, matrix, keeping_std(pose, matrix))
    if routing == "fm":
        options |= {"batch_norm": None if batch_norm == "none" else batch_norm}
        options |= {"momentum": MOMENTUM, "batch_norm_eps": EPS}
    if routing == "fm" or batch_norm == "none":
        return CapsuleLayer(LinearTransform(*sizes), routing, **options)
    transform = NormalisedTransform(*sizes, each=cast(Each, batch_norm))
    if routing in SQUASHED:  # its parents start about 1/2 long, where the squash has a slope
        nn.init.constant_(transform.norm.weight, parents / math.sqrt(children * pose))
    return CapsuleLayer(transform, routing, **options)


def fm_resnet(
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    blocks: tuple[int, ...] = (8, 8, 8),
    width: int = 16,
    primary: int = 4,
    pose: int = 16,
    capsules: tuple[int, ...] = (32, 16),
    routing: str = "fm",
    iterations: int = 3,
    batch_norm: str = "element",
    l2: bool = True,
    mean: bool = True,
    halved: bool = True,
    matrix: bool = True,
    score: str = "activation",
    decoder: bool = False,
    activated_stem: bool = True,
    activated_projection: bool = False,
) -> FMResNet:
    """Return the network of section 4.2; 903,760 trainable parameters for 32x32x3 and 10 classes.

    That is with the released code's 24 blocks. The paper says 25 and not where the extra one goes: (9, 8, 8) has
    908,432 parameters, (8, 9, 8) 922,320 and (8, 8, 9) 977,744.

    Args:
        num_classes, in_channels, image_size: of the data; image_size is (height, width).
        blocks, width: see `ResNetV2`.
        primary: types of primary capsules; they stand at an eighth of the image's side, rounded up.
        pose: elements of every pose.
        capsules: in each layer between the primary and the class capsules; () for none.
        routing: of all layers; one without an objective of its own. Primary capsules have their lengths as activations.
        iterations: of the routing, at least 1; FM has one.
        batch_norm: what has statistics of its own in the batch norm of votes: each pose "element", (child, element) or
            (child, parent, element) "pair"; "none" leaves it out. With "child" and "pair" that of the primary
            capsules is by (child, element).
        l2, mean, halved: see `FM`; of no other routing.
        matrix: whether a transform is a matrix of sqrt(pose) x sqrt(pose), else pose x pose.
        score: "activation", or "squash", the length of the squashed pose. They are the same but for FM. Of a routing
            whose poses are layer-normed a score is one linear map of the pose, as in `read_classes`.
        decoder: whether the winning class capsule is decoded, by `DeconvDecoder`.
        activated_stem, activated_projection: see `ResNetV2`; as released. He et al. 2016 have both, and the networks of
            torchcaps before revision 2 had the other of each: False and True.

    Raises:
        ValueError: for sizes below 1 and names that are not there; for poses that are no squares, with `matrix`; for
            FM's settings with another routing.
    """
    check_choice("batch_norm", batch_norm, BATCH_NORMS)
    check_choice("score", score, SCORES)
    spec = routing_class(routing).spec
    if spec.objective:
        raise ValueError(f"routing {routing!r} learns by an objective of its own, which this network has no phase for")
    if routing != "fm" and not (l2 and mean and halved):
        raise ValueError(
            f"l2, mean and halved are settings of routing 'fm', but routing is {routing!r}: leave them out"
        )
    features = ResNetV2(in_channels, blocks, width, activated_stem, activated_projection)
    height, width = count_positions(image_size, (*features.windows, PRIMARY))
    each = "element" if batch_norm in ("element", "none") else "child"
    first = NormalisedPrimary(features.channels, primary, pose, height * width, *PRIMARY[:2], each)
    raw = routing == "fm" and score == "squash"
    counts, layers = (primary * height * width, *capsules, num_classes), []
    for level, (children, parents) in enumerate(pairwise(counts)):
        last = level == len(capsules)
        fm = {"l2": l2, "mean": mean, "halved": halved, "normalised": last and not raw} if routing == "fm" else {}
        layers.append(build_layer(children, parents, pose, matrix, batch_norm, routing, **fm))
    head = SquashHead() if raw else read_classes(spec, pose)
    decoding = DeconvDecoder(pose, (in_channels, *image_size)) if decoder else None
    return FMResNet(features, first, CapsuleStack(layers, iterations), head, decoding, squashed=raw)


# affNIST: 195,376 parameters for 40x40x1, 381,521 with its decoder; MultiMNIST: 389,808 for 36x36x1, 552,849 with its
# decoder; smallNORB: 196,720 for 32x32x1 and 5 classes
register_variant("fm-resnet-cifar10", fm_resnet, **CIFAR10)
register_variant("fm-resnet-affnist", fm_resnet, **AFFNIST, blocks=(1, 1, 1), capsules=())
register_variant("fm-resnet-multimnist", fm_resnet, **MULTIMNIST, blocks=(3, 3, 3), capsules=())
register_variant("fm-resnet-smallnorb", fm_resnet, **SMALLNORB, blocks=(1, 1, 1), capsules=(), batch_norm="pair")
