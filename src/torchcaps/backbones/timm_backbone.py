"""Any timm model as a feature extractor. timm is imported when one is built, not before."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchcaps.files import expand_home
from torchcaps.layers import evaluating
from torchcaps.names import check_choice, unknown

Features = Literal["pooled", "spatial", "flattened", "trunk"]
FEATURES = ("pooled", "spatial", "flattened", "trunk")


class TimmBackbone(nn.Module):
    """Images [b, c, h, w] to features [b, *shape], by a timm model without its classifier.

    Args:
        name: of a timm model, a tag of pretrained weights included where one is wanted ("resnet50.a1_in1k").
        in_channels, image_size: of the images; the model must take them, which one image of zeros tells.
        features: "pooled" [b, f], as timm pools them; "spatial", the map before pooling [b, c, h, w]; "flattened", the
            map halved by 2x2 means, a row or column left over counting as one, and flattened as (c, h, w), as the dense
            ResNet-50 of Sun et al. 2023 without upsampling needs it; "trunk", the map [b, c, h, w] that the last
            convolution takes, which is left out with its norm, in a ResNet with the shortcut around it, too.
        pretrained: fetch weights through timm, from the network or its cache; a path: read them from that file, as timm
            saves them (safetensors, or what `torch.load` reads with `weights_only`). Nothing is fetched otherwise.
        small_stem: halve small images less (Sun et al. 2023, section 4.3.2): the first convolution has stride 1, a
            larger kernel than 3 becomes a fresh 3x3, and a max pooling behind it is left out.
        channels: of a ResNet's stages, as timm counts them (64, 128, 256, 512 of its own); () leaves them as they are.

    `taken` is how many channels the convolution made that a trunk leaves out, else None.

    Raises:
        ValueError: for a name that timm does not have (the nearest is named), images that the model does not take,
            weights that cannot be had, a stem that cannot be made small, channels of what is no ResNet, and a trunk
            where no last convolution is known.

    What only timm's pooled features pass through, such as the last convolution of a MobileNet V3, is left out of the
    other kinds: it would have parameters that nothing trains. Weights of a network that has it are read without it.
    """

    def __init__(
        self,
        name: str,
        in_channels: int,
        image_size: tuple[int, int],
        features: Features = "pooled",
        pretrained: bool | str = False,
        small_stem: bool = False,
        channels: tuple[int, ...] = (),
    ):
        super().__init__()
        check_choice("features", features, FEATURES)
        self.features: Features = features
        self.model = _build(name, in_channels, image_size, pretrained, channels)
        if small_stem:
            _shrink_stem(name, self.model)
        self.taken = _leave_out_last(name, self.model) if features == "trunk" else None
        self.shape = self._measure(name, in_channels, image_size)
        image = next(self.model.parameters()).new_zeros(1, in_channels, *image_size)
        self.left_out = () if features == "pooled" else _leave_out_unused(self.model, partial(_sum_of, self, image))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for each in self.left_out:
            for key in [key for key in state_dict if key.startswith(f"{prefix}model.{each}.")]:
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, images: Tensor) -> Tensor:
        if self.features == "pooled":
            return self.model(images)
        maps = self.model.forward_features(images)  # pyright: ignore[reportCallIssue]
        if getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            maps = maps.movedim(-1, 1)
        whole = self.features != "flattened" or maps.ndim < 4  # tokens have no map, which `_measure` refuses
        return maps if whole else halved(maps).flatten(1)

    def _measure(self, name: str, in_channels: int, image_size: tuple[int, int]) -> tuple[int, ...]:
        """Return shape of one image's features; the weights are fresh, so that what passes through tells nothing
        else.
        """
        image = next(self.model.parameters()).new_zeros(1, in_channels, *image_size)
        try:
            with torch.no_grad(), evaluating(self):
                shape = tuple(self(image).shape[1:])
        except (AssertionError, RuntimeError, ValueError) as error:
            size = f"{image_size[0]}x{image_size[1]}"
            raise ValueError(f"{name} does not take images of {size} and {in_channels} channels: {error}") from error
        if len(shape) != (3 if self.features in ("spatial", "trunk") else 1):
            raise ValueError(f"{name} has no map of features, but {list(shape)} an image: features 'pooled' can be had")
        return shape


def halved(maps: Tensor) -> Tensor:
    """Map [b, c, h, w] -> [b, c, ceil(h / 2), ceil(w / 2)]: means over 2x2, as Keras' "same" pooling has them."""
    return F.avg_pool2d(maps, 2, ceil_mode=True, count_include_pad=False)


def check_timm_name(name: str) -> None:
    """Raise ValueError unless timm has a model `name`, with or without a tag of pretrained weights."""
    import timm

    if not timm.is_model(name):
        raise unknown("timm model", name, timm.list_models())
    tags = timm.list_models(f"{name.partition('.')[0]}.*", include_tags=True)
    if "." in name and name not in tags:
        raise unknown("pretrained timm model", name, tags)


def _build(
    name: str, in_channels: int, image_size: tuple[int, int], pretrained: bool | str, channels: tuple[int, ...]
) -> nn.Module:
    import timm

    check_timm_name(name)
    config = timm.get_pretrained_cfg(name)
    sized: dict[str, Any] = {"img_size": image_size} if config is not None and config.fixed_input_size else {}
    if channels:
        if pretrained or min(channels) < 1 or len(channels) != 4 or not _is_resnet(name):
            raise ValueError(
                f"channels are {channels} of {name}: they are of the four stages of a ResNet, each at least 1, and "
                "have no pretrained weights"
            )
        sized["channels"] = channels
    if isinstance(pretrained, str):
        if not (file := expand_home(pretrained)).is_file():
            raise ValueError(f"pretrained is {pretrained!r}: there is no such file of weights")
        sized["pretrained_cfg_overlay"] = {"file": str(file)}
    try:
        return timm.create_model(name, pretrained=bool(pretrained), in_chans=in_channels, num_classes=0, **sized)
    except (KeyError, OSError, RuntimeError, pickle.UnpicklingError) as error:
        if not pretrained:
            raise
        raise ValueError(f"pretrained weights of {name} cannot be had: {error}") from error


def _is_resnet(name: str) -> bool:
    import timm
    from timm.models.resnet import ResNet

    with torch.device("meta"):
        return type(timm.create_model(name, num_classes=0)) is ResNet


def _leave_out_last(name: str, model: nn.Module) -> int:
    """Take the last convolution out of a ResNet, or of a network that ends in one; the channels that it made."""
    from timm.models.resnet import BasicBlock, Bottleneck

    last = getattr(model, "conv_head", None)  # of MobileNet and EfficientNet
    if isinstance(last, nn.Conv2d):
        for part in ("conv_head", "bn2", "norm_head"):
            if hasattr(model, part):
                setattr(model, part, nn.Identity())
        return last.out_channels
    stage = getattr(model, "layer4", None)
    block = stage[-1] if isinstance(stage, nn.Sequential) else None
    if not isinstance(block, BasicBlock | Bottleneck):
        raise ValueError(f"{name} does not end in a convolution that could be left out: features 'spatial' can be had")
    assert isinstance(stage, nn.Sequential)
    if isinstance(block, Bottleneck):
        kept, last = ("conv1", "bn1", "act1", "conv2", "bn2", "drop_block", "act2", "aa"), block.conv3
    else:
        kept, last = ("conv1", "bn1", "drop_block", "act1", "aa"), block.conv2
    stage[-1] = nn.Sequential(*(getattr(block, part) for part in kept))
    assert isinstance(last, nn.Conv2d)
    return last.out_channels


def _sum_of(backbone: TimmBackbone, image: Tensor) -> Tensor:
    with evaluating(backbone):
        return backbone(image).float().sum()


def _leave_out_unused(model: nn.Module, measure: Callable[[], Tensor]) -> tuple[str, ...]:
    """Take the largest parts without any parameter that `measure` depends on out of `model`; their names.

    A gradient tells, since some networks of timm use weights of a part without calling it.
    """
    with torch.inference_mode(False), torch.enable_grad():
        parameters = [each for each in model.parameters() if each.requires_grad]
        if any(each.is_inference() for each in parameters):
            return ()
        found = torch.autograd.grad(measure(), parameters, allow_unused=True)
    used = {id(each) for each, gradient in zip(parameters, found, strict=True) if gradient is not None}
    unused: list[str] = []
    for name, part in model.named_modules():
        own = list(part.parameters())
        within = any(name.startswith(f"{each}.") for each in unused)
        if name and own and not within and not any(id(each) in used or not each.requires_grad for each in own):
            unused.append(name)
    for name in unused:
        model.set_submodule(name, nn.Identity())
    return tuple(unused)


def _shrink_stem(name: str, model: nn.Module) -> None:
    config: Any = getattr(model, "pretrained_cfg", {})
    place = config.get("first_conv")
    conv = model.get_submodule(place) if isinstance(place, str) else None
    if not isinstance(conv, nn.Conv2d) or conv.stride != (2, 2):
        raise ValueError(f"{name} does not begin with a convolution of stride 2: leave small_stem out")
    assert isinstance(place, str)
    if max(conv.kernel_size) > 3:
        small = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, bias=conv.bias is not None)
        nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
        model.set_submodule(place, small)
    else:
        conv.stride = (1, 1)
    if isinstance(getattr(model, "maxpool", None), nn.MaxPool2d):
        model.maxpool = nn.Identity()
