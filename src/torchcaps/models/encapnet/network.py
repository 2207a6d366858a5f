"""EncapNet (Li, Guo, Dai, Ouyang and Wang 2018, Table 2), and the ResNet that the paper compares it with.

The paper prints v1 only. Of v2 it says that it has 101 layers and that some blocks in its shallow layers are master
alone. Lengths that sum to 95 are ours: as many layers in each module as ResNet-101 has (9, 12, 69, 9, the type I layer
among them), the first two modules being master alone. v3 is v1 on larger images.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from torchcaps.backbones.resnet import BasicBlock
from torchcaps.capsules import lengths
from torchcaps.config import ScoreKind
from torchcaps.encapnet import CapConvModule, CapFC, to_capsules
from torchcaps.encapnet.capconv import Skip, check_aide
from torchcaps.models.encapnet.feedback import register_with_feedback
from torchcaps.models.encapnet.staged import StagedModel
from torchcaps.models.registry import Output

GRID = 4  # positions a side under the class capsules, as 32 pixels leave them


def conv_block(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution, batch norm and ReLU: M0 of Table 2, and the first layers of the six-layer networks."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU()
    )


class Shrink(nn.Module):
    """Average maps to at most `side` positions along each axis; smaller maps stay as they are."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, maps: Tensor) -> Tensor:
        height, width = maps.shape[2:]
        if max(height, width) <= self.side:
            return maps
        return F.adaptive_avg_pool2d(maps, (min(self.side, height), min(self.side, width)))


def halved(image_size: tuple[int, int], times: int) -> tuple[int, int]:
    """Return (height, width) after so many convolutions of stride 2 that round up."""
    height, width = (-(-side // 2**times) for side in image_size)
    return height, width


class CapsuleStages(StagedModel):
    """A stem, capConv modules, and a capFC layer; scores are the lengths of the class capsules.

    Maps larger than those of 32 pixels, 4x4 under the class capsules, are averaged to these: the paper gives no rule,
    and capFC has a weight for each position.

    Args:
        stem, image: see `StagedModel`.
        modules: the stages.
        num_classes: of the data.
        types, pose: of the last module's capsules.
        halvings: how often stem and modules halve an image.
    """

    def __init__(
        self,
        stem: nn.Module,
        modules: list[CapConvModule],
        num_classes: int,
        types: int,
        pose: int,
        image: tuple[int, int, int],
        halvings: int,
    ):
        height, width = (min(GRID, side) for side in halved(image[1:], halvings))
        super().__init__(stem, modules, CapFC(types * height * width, num_classes, pose), image, types)
        self.shrink, self.types = Shrink(GRID), types

    @property
    def scores(self) -> ScoreKind:
        return "length"

    def read(self, maps: Tensor) -> Output:
        primary = to_capsules(self.shrink(maps), self.types)
        classes = self.head(primary)
        return Output(lengths(classes.poses), (primary, classes), {})


def encapnet(
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    types: int = 32,
    lengths: tuple[int, ...] = (3, 3, 3, 3),
    poses: tuple[int, ...] = (2, 4, 8, 16),
    shallow: int = 0,
    version: str = "v3",
    skip: Skip = "both",
    aide: Literal["others", "all"] = "others",
    aide_extra: int = 4,
    branch_norm: bool = False,
) -> CapsuleStages:
    """Return the network of Table 2, whose v1 the defaults are: a convolution, modules of capConv layers, and a capFC
    layer.

    The first module keeps the size of the maps, each other one halves it.

    Args:
        num_classes, in_channels, image_size: of the data; image_size is (height, width).
        types: capsules per position, in all layers.
        lengths: type II layers of each module (N_i); the network has 2 + sum(N_i + 1) layers.
        poses: elements of a pose after each module; one for each of `lengths`.
        shallow: so many of the first modules are master alone.
        version, aide, aide_extra, branch_norm: see `MasterAideConv2d`.
        skip: which layers have one, see `CapConvModule`.

    Raises:
        ValueError: for `poses` and `lengths` that do not agree, for sizes that the layers cannot take, and for settings
            of an aide where `version` has none.
    """
    if len(poses) != len(lengths) or not poses:
        raise ValueError(f"poses {poses} and lengths {lengths} must name the same modules, at least one")
    if not 0 <= shallow <= len(lengths):
        raise ValueError(f"shallow is {shallow}; it must be between 0 and the {len(lengths)} modules")
    check_aide(version, aide, aide_extra, branch_norm)
    versions = ["master"] * shallow + [version] * (len(lengths) - shallow)
    modules = [
        CapConvModule(
            types,
            below,
            above,
            length,
            stride=2 if stage else 1,
            skip=skip,
            version=wired,
            aide=aide,
            aide_extra=aide_extra,
            branch_norm=branch_norm,
        )
        for stage, ((below, above), length, wired) in enumerate(
            zip(pairwise((1, *poses)), lengths, versions, strict=True)
        )
    ]
    stem, image = conv_block(in_channels, types), (in_channels, *image_size)
    return CapsuleStages(stem, modules, num_classes, types, poses[-1], image, halvings=len(modules) - 1)


def encapnet_resnet(
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    channels: int = 32,
    blocks: tuple[int, ...] = (2, 2, 2, 2),
) -> StagedModel:
    """Return the ResNet of Table 2, whose maps have the shapes of EncapNet's; scores are logits.

    Args:
        num_classes, in_channels, image_size: of the data.
        channels: of the first convolution; each stage has twice those of the one below.
        blocks: of each stage (n_i); the network has 2 + sum(2 n_i) layers.
    """
    stages = [
        nn.Sequential(
            BasicBlock(channels << n, channels << n + 1, 1 if n == 0 else 2),
            *(BasicBlock(channels << n + 1, channels << n + 1) for _ in range(count - 1)),
        )
        for n, count in enumerate(blocks)
    ]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels << len(blocks), num_classes))
    return StagedModel(conv_block(in_channels, channels), stages, head, (in_channels, *image_size))


register_with_feedback("encapnet-v1", encapnet)
register_with_feedback("encapnet-v2", encapnet, lengths=(8, 11, 68, 8), shallow=2)
register_with_feedback("encapnet-v3", encapnet)
register_with_feedback("encapnet-resnet", encapnet_resnet)
