"""timm models under capsule heads: "mobilenetv2_100.xnidr", "resnet50.a1_in1k.em", ... and ".linear" beside them.

A name is a timm model, a dot, and a registered routing or "linear". All timm models can be had; those of the paper
(Sun et al. 2023), and smaller ones of their kind, are listed. timm is imported when a model is built. Keyword arguments
of a routing are options with `routing_` before their names: `routing_threshold` of XnODR's signs (appendix A).

Between the two may stand what takes the place of the last convolution of a MobileNet, an EfficientNet or a ResNet
(`primary_heads`), as in "mobilenetv2_100.primary.xnodr":

| part | in place of the last convolution |
| --- | --- |
| `primary` | PrimaryCaps (figure 1b), pooled |
| `xnor-primary` | xnorized PrimaryCaps (appendix B, Eq. 20), pooled |
| `convcaps` | PrimaryCaps and a 3x3 layer of convolutional capsules; of XnODR these are xnorized |
| `xnor-convcaps` | the same with xnorized PrimaryCaps |

The paper's own networks, with 10 classes and three channels:

| network | name and options |
| --- | --- |
| MobileNet V2 | `mobilenetv2_100.linear`, `hidden` (512, 256, 128); without upsampling `small_stem` |
| ResNet-50 | `resnet50.linear`, `hidden` (1024, 512); without upsampling `small_stem` and `features` "flattened" |
| with DR, XnODR, XnIDR | `.dynamic`, `.xnodr`, `.xnidr`; without upsampling `small_stem` |
"""

from __future__ import annotations

from torchcaps.backbones.timm_backbone import Features, TimmBackbone, check_timm_name
from torchcaps.models.heads import PRIMARY_TYPES, CapsuleHead, DenseHead, HeadedModel, takes_vectors
from torchcaps.models.primary_heads import PrimaryHead
from torchcaps.models.registry import Factory, register_family
from torchcaps.names import LINEAR
from torchcaps.routing import list_routings
from torchcaps.votes import Threshold

PAPERS = ("mobilenetv2_100", "resnet50")
LISTED = ("mobilenetv2_035", "mobilenetv2_100", "resnet18", "resnet50")
PRIMARY = ("primary", "xnor-primary", "convcaps", "xnor-convcaps")
TYPES = 32  # of convolutional capsules


def listed_names() -> list[str]:
    """Return the paper's backbones and smaller ones of their kind with every head, and the paper's with primary
    capsules.
    """
    heads = [spec.name for spec in list_routings()]
    vectors = [head for head in heads if takes_vectors(head)]
    between = [f"{backbone}.{part}.{head}" for backbone in PAPERS for part in PRIMARY for head in vectors]
    return [*(f"{backbone}.{head}" for backbone in LISTED for head in (*heads, LINEAR)), *between]


def is_timm(name: str) -> bool:
    """Return whether `name` is of a timm model with a head, or would be if timm had it."""
    return "." in name and not name.startswith("small-resnet.")


def headed(name: str) -> Factory | None:
    """Return the factory of a timm model with a head; None where `name` does not end in one.

    Raises:
        ValueError: when timm has no such model; the nearest is named.
    """
    backbone, _, head = name.rpartition(".")
    if not backbone or head not in (LINEAR, *(spec.name for spec in list_routings())):
        return None
    network, _, part = backbone.rpartition(".")
    between = bool(network) and part in PRIMARY and head != LINEAR
    network = network if between else backbone
    if network not in LISTED:
        check_timm_name(network)
    if between:
        return _primary(network, part, head)
    return _dense(network) if head == LINEAR else _routed(network, head)


def _routed(name: str, routing: str) -> Factory:
    def capsules(
        num_classes: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (224, 224),
        features: Features = "pooled",
        pretrained: bool | str = False,
        small_stem: bool = False,
        channels: tuple[int, ...] = (),
        pose: int | None = None,
        class_pose: int = 16,
        primary: int = PRIMARY_TYPES,
        iterations: int = 3,
        scaled: bool = False,
        routing_options: dict[str, object] | None = None,
        hidden: tuple[int, ...] = (),
    ) -> HeadedModel:
        backbone = TimmBackbone(name, in_channels, image_size, features, pretrained, small_stem, channels)
        sizes = pose, class_pose, primary, iterations, scaled, routing_options, hidden
        return HeadedModel(backbone, CapsuleHead(routing, backbone.shape, num_classes, *sizes))

    return capsules


def _primary(name: str, part: str, routing: str) -> Factory:
    """Return capsules in place of the last convolution; as many as its channels make, or 32 types of convolutional
    ones.
    """

    def capsules(
        num_classes: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (224, 224),
        pretrained: bool | str = False,
        small_stem: bool = False,
        channels: tuple[int, ...] = (),
        pose: int = 8,
        class_pose: int = 16,
        primary: int | None = None,
        iterations: int = 3,
        scaled: bool = False,
        threshold: Threshold = "zero",
        routing_options: dict[str, object] | None = None,
    ) -> HeadedModel:
        backbone = TimmBackbone(name, in_channels, image_size, "trunk", pretrained, small_stem, channels)
        assert backbone.taken is not None
        conv = part.endswith("convcaps")
        types = primary if primary is not None else TYPES if conv else max(1, backbone.taken // max(pose, 1))
        form = conv, part.startswith("xnor-"), iterations, scaled, threshold
        head = PrimaryHead(routing, backbone.shape, num_classes, types, pose, class_pose, *form, routing_options)
        return HeadedModel(backbone, head)

    return capsules


def _dense(name: str) -> Factory:
    def dense(
        num_classes: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (224, 224),
        features: Features = "pooled",
        pretrained: bool | str = False,
        small_stem: bool = False,
        channels: tuple[int, ...] = (),
        hidden: tuple[int, ...] = (),
    ) -> HeadedModel:
        backbone = TimmBackbone(name, in_channels, image_size, features, pretrained, small_stem, channels)
        return HeadedModel(backbone, DenseHead(backbone.shape, num_classes, hidden))

    return dense


register_family(listed_names, headed)
