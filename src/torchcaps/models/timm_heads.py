"""timm models under capsule heads: "mobilenetv2_100.xnidr", "resnet50.a1_in1k.em", ... and ".linear" beside them.

A name is a timm model, a dot, and a registered routing or "linear". All timm models can be had; those of the paper
(Sun et al. 2023), and smaller ones of their kind, are listed. timm is imported when a model is built.

The paper's own networks, with 10 classes and three channels:

| network | name and options |
| --- | --- |
| MobileNet V2 | `mobilenetv2_100.linear`, `hidden` (512, 256, 128); without upsampling `small_stem` |
| ResNet-50 | `resnet50.linear`, `hidden` (1024, 512); without upsampling `small_stem` and `features` "flattened" |
| with DR, XnODR, XnIDR | `.dynamic`, `.xnodr`, `.xnidr`; without upsampling `small_stem` |
"""

from __future__ import annotations

from torchcaps.backbones.timm_backbone import Features, TimmBackbone, check_timm_name
from torchcaps.models.heads import CapsuleHead, DenseHead, HeadedModel
from torchcaps.models.registry import Factory, register_family
from torchcaps.routing import list_routings

LISTED = ("mobilenetv2_035", "mobilenetv2_100", "resnet18", "resnet50")
LINEAR = "linear"


def listed_names() -> list[str]:
    """The backbones of the paper, and smaller ones of their kind, with every head."""
    heads = [*(spec.name for spec in list_routings()), LINEAR]
    return [f"{backbone}.{head}" for backbone in LISTED for head in heads]


def headed(name: str) -> Factory | None:
    """The factory of a timm model with a head; None where `name` does not end in one.

    Raises:
        ValueError: when timm has no such model; the nearest is named.
    """
    backbone, _, head = name.rpartition(".")
    if not backbone or head not in (LINEAR, *(spec.name for spec in list_routings())):
        return None
    if backbone not in LISTED:
        check_timm_name(backbone)
    return _dense(backbone) if head == LINEAR else _routed(backbone, head)


def _routed(name: str, routing: str) -> Factory:
    def capsules(
        num_classes: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (224, 224),
        features: Features = "pooled",
        pretrained: bool = False,
        small_stem: bool = False,
        pose: int | None = None,
        class_pose: int = 16,
        primary: int = 32,
        iterations: int = 3,
        scaled: bool = False,
        routing_options: dict[str, object] | None = None,
    ) -> HeadedModel:
        backbone = TimmBackbone(name, in_channels, image_size, features, pretrained, small_stem)
        head = CapsuleHead(
            routing, backbone.shape, num_classes, pose, class_pose, primary, iterations, scaled, routing_options
        )
        return HeadedModel(backbone, head)

    return capsules


def _dense(name: str) -> Factory:
    def dense(
        num_classes: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (224, 224),
        features: Features = "pooled",
        pretrained: bool = False,
        small_stem: bool = False,
        hidden: tuple[int, ...] = (),
    ) -> HeadedModel:
        backbone = TimmBackbone(name, in_channels, image_size, features, pretrained, small_stem)
        return HeadedModel(backbone, DenseHead(backbone.shape, num_classes, hidden))

    return dense


register_family(listed_names, headed)
