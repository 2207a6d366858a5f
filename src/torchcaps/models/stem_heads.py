"""A small residual network under any head, to compare routings on small images: "small-resnet.dynamic", ".linear", ...

Three stages of one basic block, each of which halves the image: 28 or 32 pixels leave 4x4 positions. Capsule heads take
that map through primary capsules; the linear head, a plain network's, takes the mean over the positions.
"""

from __future__ import annotations

from torch import Tensor, nn

from torchcaps.backbones.interface import count_positions
from torchcaps.backbones.resnet import ResNetBackbone, Stage
from torchcaps.models.heads import CapsuleHead, DenseHead, HeadedModel
from torchcaps.models.registry import Factory, register_family
from torchcaps.names import LINEAR
from torchcaps.routing import list_routings

NAME = "small-resnet"


def small_resnet(in_channels: int, width: int) -> ResNetBackbone:
    """Return the backbone: images [b, c, h, w] -> features [b, 4 width, h / 8, w / 8], sides rounded up."""
    if width < 1:
        raise ValueError(f"width is {width}; it must be at least 1")
    return ResNetBackbone(in_channels, tuple(Stage(width << n, 1, stride=2) for n in range(3)))


class MeanOverPositions(nn.Module):
    """[b, c, h, w] -> [b, c]."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3))


def listed_names() -> list[str]:
    return [f"{NAME}.{head}" for head in (*(spec.name for spec in list_routings()), LINEAR)]


def headed(name: str) -> Factory | None:
    """Return the factory of the small residual network with a head; None for other names."""
    if name not in listed_names():
        return None
    head = name.rpartition(".")[2]
    return dense if head == LINEAR else _routed(head)


def _routed(routing: str) -> Factory:
    def capsules(
        num_classes: int,
        in_channels: int,
        image_size: tuple[int, int],
        width: int = 16,
        pose: int | None = None,
        class_pose: int = 16,
        primary: int | None = None,
        iterations: int = 3,
        scaled: bool = False,
        routing_options: dict[str, object] | None = None,
        hidden: tuple[int, ...] = (),
    ) -> HeadedModel:
        backbone = small_resnet(in_channels, width)
        shape = (backbone.channels, *count_positions(image_size, backbone.windows))
        sizes = pose, class_pose, primary, iterations, scaled, routing_options, hidden
        head = CapsuleHead(routing, shape, num_classes, *sizes)
        return HeadedModel(backbone, head)

    return capsules


def dense(
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    width: int = 16,
    hidden: tuple[int, ...] = (),
) -> HeadedModel:
    backbone = small_resnet(in_channels, width)
    count_positions(image_size, backbone.windows)  # which refuses images too small for it
    return HeadedModel(nn.Sequential(backbone, MeanOverPositions()), DenseHead(backbone.channels, num_classes, hidden))


register_family(listed_names, headed)
