"""The twin of a capsule network: a convolutional one of as many parameters, "NAME-twin" of a registered NAME.

Networks of a stem, primary capsules and one stack of routed layers have one; others, such as EncapNet, have none.

It has the same stem and decoder, the windows of the primary capsules and of each layer of capsules, hence the same
receptive field, and takes the same loss. Only what capsules and routing are for is plain: convolutions and dense layers
with batch norm and ReLU, all of one width, which is solved for. A result of capsules that its twin has too is none.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchcaps.backbones.interface import Window, count_positions
from torchcaps.config import ScoreKind
from torchcaps.layers import (
    CapsuleLayer,
    CapsuleStack,
    ConvTransform,
    LinearTransform,
    PooledTransform,
    PrimaryCapsules,
    PrimaryPoses,
    Transform,
    chosen_class,
    evaluating,
)
from torchcaps.models.capsnet import CapsNet
from torchcaps.models.efficient_capsnet import CutCapsules, EfficientCapsNet
from torchcaps.models.heads import HeadedModel, PooledCapsules, RoutedHead
from torchcaps.models.network import CapsuleNetwork
from torchcaps.models.registry import Factory, Model, Output, find_factory, register_family
from torchcaps.models.self_routing import NormedPoses
from torchcaps.models.variational_bayes import NormedPrimary
from torchcaps.names import OF_TWIN

TOLERANCE = 0.01  # of the parameters
LISTED = ("capsnet-twin", "small-resnet.dynamic-twin", "small-resnet.em-twin")


class Parts(NamedTuple):
    """What a capsule network is made of, as its twin must know it."""

    stem: nn.Module  # images -> features
    primary: nn.Module
    transforms: list[Transform]
    scores: ScoreKind | None
    decoder: nn.Module | None


def parts_of(model: Model) -> Parts:
    """Return the parts of a network of a stem, primary capsules and one stack of routed layers.

    Raises:
        ValueError: for another network.
    """
    decoder = getattr(model, "decoder", None)
    if isinstance(model, EfficientCapsNet):
        return Parts(model.stem, model.primary, _of(model.stack), model.scores, decoder)
    if isinstance(model, CapsNet):
        return Parts(
            nn.Sequential(model.stem, model.activation), model.primary, _of(model.stack), model.scores, decoder
        )
    if isinstance(model, CapsuleNetwork):
        return Parts(model.backbone, model.primary, _of(model.stack), model.scores, decoder)
    if isinstance(model, HeadedModel) and isinstance(model.head, RoutedHead):
        return Parts(model.backbone, model.head.primary, _of(model.head.stack), model.scores, decoder)
    raise ValueError(
        f"a {type(model).__name__} has no twin: it must be a stem, primary capsules and one stack of routed layers"
    )


def _of(stack: CapsuleStack) -> list[Transform]:
    return [layer.transform for layer in stack.layers if isinstance(layer, CapsuleLayer)]  # pyright: ignore[reportReturnType]


class Flatten(nn.Module):
    """[b, c, h, w] or [b, c] -> [b, features]: all positions, or their mean."""

    def __init__(self, mean: bool):
        super().__init__()
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if self.mean and x.ndim == 4 else x.flatten(1)


def plain_layers(parts: Parts, features: tuple[int, ...], width: int, outputs: int) -> nn.Sequential:
    """Return the convolutions and dense layers of `width` that stand for primary capsules and each routed layer.

    Where a layer of capsules shares its transforms between positions, or pools these, so does its twin: it reads the
    mean over the positions.

    Args:
        parts: of the capsule network.
        features: shape of what the stem makes, (channels, height, width) or (channels,).
        width: of each layer but the last.
        outputs: of the last.
    """
    channels, *space = features
    layers: list[nn.Module] = []

    def conv(window: Window) -> None:
        nonlocal channels, space
        space = list(count_positions((space[0], space[1]), [window]))
        layers.extend([nn.Conv2d(channels, width, *window, bias=False), nn.BatchNorm2d(width), nn.ReLU()])
        channels = width

    def dense(mean: bool, out: int, last: bool) -> None:
        nonlocal channels, space
        inputs = channels if mean or not space else channels * space[0] * space[1]
        layers.extend([Flatten(mean), nn.Linear(inputs, out)] if space else [nn.Linear(inputs, out)])
        layers.extend([] if last else [nn.BatchNorm1d(out), nn.ReLU()])
        channels, space = out, []

    primary = parts.primary
    if isinstance(primary, PrimaryCapsules | PrimaryPoses | NormedPoses | NormedPrimary):
        own = primary.conv
        assert isinstance(own.padding, tuple)
        conv(Window(own.kernel_size[0], own.stride[0], own.padding[0]))
        pooled = isinstance(primary, PrimaryCapsules) and primary.pooled
    elif isinstance(primary, PooledCapsules | CutCapsules):
        dense(False, width, last=False)
        pooled = False
    else:
        raise ValueError(f"primary capsules of class {type(primary).__name__} have no twin")
    for transform in parts.transforms[:-1]:
        if isinstance(transform, ConvTransform):
            conv(Window(transform.shape[1], transform.stride, transform.padding))
        else:
            dense(pooled or _shares(transform), width, last=False)
    dense(pooled or _shares(parts.transforms[-1]), outputs, last=True)
    return nn.Sequential(*layers)


def _shares(transform: Transform) -> bool:
    return isinstance(transform, PooledTransform) or (isinstance(transform, LinearTransform) and transform.shared > 1)


class Twin(Model):
    """See the module. Scores are logits where those of the capsule network are, else their sigmoid.

    With a decoder the last layer has as many units for each class as the pose of a class capsule; a logit is one linear
    map of them, and the decoder reads them.

    Args:
        parts: of the capsule network.
        features: shape of what the stem makes of an image.
        width: of each layer.
        stem: False leaves stem and decoder out, to count what is left.
    """

    def __init__(self, parts: Parts, features: tuple[int, ...], width: int, stem: bool = True):
        super().__init__()
        last = parts.transforms[-1].sizes
        units = last.pose if parts.decoder is not None else 1
        self.classes, self.logits = last.parents, parts.scores == "logit"
        self.layers = plain_layers(parts, features, width, last.parents * units)
        self.read = nn.Linear(units, 1) if parts.decoder is not None else nn.Identity()
        self.stem = parts.stem if stem else nn.Identity()
        self.decoder = parts.decoder if stem else None

    @property
    def scores(self) -> ScoreKind:
        return "logit" if self.logits else "probability"

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        units = self.layers(self.stem(images)).unflatten(1, (self.classes, -1))  # [b, j, d]
        scores = self.read(units).squeeze(-1)
        scores = scores if self.logits else scores.sigmoid()
        if self.decoder is None:
            return Output(scores, (), {})
        return Output(scores, (), {"reconstruction": self.decoder(units, chosen_class(scores, labels))})

    def reconstruct(self, poses: Tensor, chosen: Tensor) -> Tensor:
        return super().reconstruct(poses, chosen) if self.decoder is None else self.decoder(poses, chosen)


def solve_width(count: Callable[[int], int], target: int) -> int:
    """Return the width whose `count` of parameters, which grows with it, is nearest to `target`.

    Raises:
        ValueError: where none comes within 1 %; names the nearest two.
    """
    high = 1
    while count(high) < target:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < target else (low, middle)
    near = [width for width in (low, high) if width]
    best = min(near, key=lambda width: abs(count(width) - target))
    if abs(count(best) - target) > TOLERANCE * target:
        said = " and ".join(f"{width} makes {count(width):,}" for width in near)
        raise ValueError(f"no width gives the twin {target:,} parameters within {TOLERANCE:.0%}: {said}")
    return best


def trainable(module: nn.Module) -> int:
    """Return the number of parameters that training changes."""
    return sum(each.numel() for each in module.parameters() if each.requires_grad)


def make_twin(model: Model, in_channels: int, image_size: tuple[int, int]) -> Twin:
    """Return the twin of `model`, whose stem and decoder it takes over.

    Args:
        model: of `in_channels` and `image_size` (height, width).

    Raises:
        ValueError: for a network that has none, see `parts_of`, and where no width fits.
    """
    parts = parts_of(model)
    with torch.no_grad(), evaluating(parts.stem):
        image = torch.zeros(1, in_channels, *image_size, device=next(model.parameters()).device)
        features = tuple(parts.stem(image).shape[1:])
    kept = trainable(parts.stem) + (trainable(parts.decoder) if parts.decoder is not None else 0)

    def count(width: int) -> int:
        with torch.device("meta"):
            return kept + trainable(Twin(parts, features, width, stem=False))

    return Twin(parts, features, solve_width(count, trainable(model)))


def twin(name: str) -> Factory | None:
    """Return the factory of the twin of the model `name` without its "-twin"; None for a name that does not end so."""
    if not name.endswith(OF_TWIN):
        return None
    of = find_factory(name.removesuffix(OF_TWIN))

    @functools.wraps(of.__init__ if isinstance(of, type) else of)
    def build(**options: object) -> Twin:
        size = options["image_size"]
        assert isinstance(size, tuple) and isinstance(options["in_channels"], int)
        return make_twin(of(**options), options["in_channels"], size)

    build.__signature__ = inspect.signature(of)  # pyright: ignore[reportAttributeAccessIssue]
    return build


register_family(lambda: LISTED, twin)
