"""Capsules of one network through the decoder of another (Yang, Li and Yu 2021, figure 2).

The paper reads such pictures as a sign of what capsules hold that were trained without a decoder. But two networks
give the elements of a pose different meanings in any case: the control is a second network that was trained as the
decoder's own, from another seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from torchcaps.inspect.figures import draw_tiles
from torchcaps.losses import reconstruction_loss
from torchcaps.models import Model


class Transplant(NamedTuple):
    """Images decoded from another network's capsules."""

    images: Tensor  # [b, c, h, w] in [0, 1]
    error: float  # squared error, summed over the pixels of an image, mean over those that `right`
    right: Tensor  # bool [b], whether that network classifies the image rightly


@torch.no_grad()
def transplant(network: Model, decoder: Model, images: Tensor, labels: Tensor) -> Transplant:
    """Decode with `decoder` the class capsules, those of the labels, that `network` makes of `images`.

    Args:
        network: makes the capsules; of as many classes and elements as those of `decoder`.
        decoder: a model with a decoder; both are left in evaluation mode. It may be `network` itself.
        images: [b, c, h, w] in [0, 1]; labels int64 [b].

    Raises:
        ValueError: when the capsules do not fit, or `decoder` has no decoder.
    """
    output = network.eval()(images)
    poses, own = output.capsules[-1].poses, decoder.eval()(images[:1]).capsules[-1].poses
    if poses.shape[1:] != own.shape[1:]:
        raise ValueError(
            f"the capsules are {tuple(poses.shape[1:])} (classes, pose), but the decoder takes {tuple(own.shape[1:])}"
        )
    decoded, right = decoder.reconstruct(poses, labels), output.scores.argmax(1) == labels
    error = reconstruction_loss(decoded[right], images[right]).item() if right.any() else float("nan")
    return Transplant(decoded, error, right)


def draw_transplants(
    decoder: Model, networks: Mapping[str, Model], images: Tensor, labels: Tensor, columns: int = 20
) -> Figure:
    """Return rows of images: as they are, decoded by `decoder` from its own capsules, and from those of each
    network, by name.

    Shown are the first `columns` of `images` that all networks classify rightly; a row names the error over all images
    that its network classifies rightly.
    """
    found = {name: transplant(each, decoder, images, labels) for name, each in {"its own": decoder, **networks}.items()}
    right = torch.stack([each.right for each in found.values()]).all(0)
    shown = right.nonzero().squeeze(1)[:columns]
    rows = {f"{name}\n{each.error:.1f}": each.images[shown] for name, each in found.items()}
    return draw_tiles({"input": images[shown]} | rows)
