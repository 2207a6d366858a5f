"""Decoders: from the pose of one class capsule back to the image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchcaps.layers.keras import EPS, MOMENTUM, SameConvTranspose2d
from torchcaps.names import whole


def chosen_class(scores: Tensor, labels: Tensor | None) -> Tensor:
    """Return the classes to reconstruct from, int64 [b] or [b, m]: the labels where they are given, else the highest
    score.

    Of label sets [b, j] of 0 and 1, of another type than int64, it is the one among them with the highest score.

    Raises:
        ValueError: for labels of another shape, and for class indices [b] that are no whole numbers.
    """
    if labels is None:
        return scores.argmax(1)
    if labels.ndim == 1 and not (labels.is_floating_point() or labels.dtype == torch.bool):
        return labels.long()
    if labels.ndim == 2 and labels.dtype == torch.int64:
        return labels
    if labels.shape != scores.shape:
        raise ValueError(
            f"labels are {labels.dtype} {list(labels.shape)}; they must be class indices [b] or int64 [b, m], or sets "
            f"{list(scores.shape)} of 0 and 1"
        )
    return scores.masked_fill(labels == 0, -torch.inf).argmax(1)


def chosen_poses(poses: Tensor, chosen: Tensor) -> Tensor:
    """Return the poses of those class capsules [b, j, d] that `chosen` names, int64 [b] or [b, m]: [b, d] or [b, m, d].

    A class of -1 stands for none; it is given the pose of class 0.
    """
    several = (chosen if chosen.ndim == 2 else chosen.unsqueeze(1)).clamp_min(0)
    found = poses.gather(1, several.unsqueeze(-1).expand(-1, -1, poses.shape[-1]))
    return found if chosen.ndim == 2 else found.squeeze(1)


def blacken(images: Tensor, chosen: Tensor) -> Tensor:
    """Return `images` [b, (m,) c, h, w] with those of class -1 in `chosen` [b, (m,)] black."""
    return torch.where((chosen < 0)[..., None, None, None], 0.0, images)  # which keeps their layout


def _image(image: Sequence[int]) -> tuple[int, int, int]:
    """Return `image`, (channels, height, width); ValueError unless each is a whole number, at least 1."""
    if len(image) != 3:
        raise ValueError(f"image is {image!r}; it must be (channels, height, width)")
    channels, height, width = (whole("image", each) for each in image)
    return channels, height, width


class DenseDecoder(nn.Module):
    """Three dense layers with a sigmoid at the end (Sabour et al. 2017, figure 2).

    All class capsules but the chosen one are set to zero, so the first layer knows the class by its place.

    Args:
        classes, pose: number of class capsules and elements of each.
        image: (channels, height, width) of the image.
        hidden: widths of the two hidden layers.
        masked: False feeds the chosen capsule alone, so that one decoder serves all classes (Rajasegaran et al. 2019).
    """

    def __init__(
        self,
        classes: int,
        pose: int,
        image: tuple[int, int, int],
        hidden: tuple[int, int] = (512, 1024),
        masked: bool = True,
    ):
        super().__init__()
        classes, pose, image = whole("classes", classes), whole("pose", pose), _image(image)
        hidden = whole("hidden", hidden[0]), whole("hidden", hidden[1])
        self.classes, self.image, self.masked = classes, image, masked
        self.layers = nn.Sequential(
            nn.Linear(classes * pose if masked else pose, hidden[0]),
            nn.ReLU(),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(),
            nn.Linear(hidden[1], math.prod(image)),
        )

    def forward(self, poses: Tensor, chosen: Tensor) -> Tensor:
        """Map poses [b, j, d] and the classes to decode, int64 [b] or [b, m] -> images [b, (m,) c, h, w] in [0, 1].

        A class of -1 stands for none, and is black.
        """
        if self.masked:
            mask = F.one_hot(chosen.clamp_min(0), self.classes).to(poses.dtype).unsqueeze(-1)  # [b, (m,) j, 1]
            fed = ((poses if chosen.ndim == 1 else poses.unsqueeze(1)) * mask).flatten(-2)
        else:
            fed = chosen_poses(poses, chosen)
        return blacken(torch.sigmoid(self.layers(fed)).unflatten(-1, self.image), chosen)


class DeconvDecoder(nn.Module):
    """A dense layer and three 5x5 deconvolutions with a sigmoid at the end, from the chosen pose alone.

    Zhao et al. 2020, section 4.3, with the sizes of their code: a quarter of the image, rounded up, in each direction,
    is doubled twice and cut to the image. Batch norm and a leaky ReLU follow all but the last. 186,145 parameters for
    40x40x1 and poses of 16 elements, 163,041 for 36x36x1.

    Args:
        pose: elements of a class capsule.
        image: (channels, height, width) of the image.
        widths: channels that the dense layer makes, and of the first two deconvolutions.
        slope: of the leaky ReLU; Keras' default.
    """

    def __init__(
        self,
        pose: int,
        image: tuple[int, int, int],
        widths: tuple[int, int, int] = (64, 32, 16),
        slope: float = 0.3,
    ):
        super().__init__()
        pose, self.image = whole("pose", pose), _image(image)
        first, second, third = (whole("widths", each) for each in widths)
        base = tuple(-(-side // 4) for side in image[1:])
        size = first * math.prod(base)
        self.layers = nn.Sequential(
            nn.Linear(pose, size),
            nn.BatchNorm1d(size, EPS, MOMENTUM),
            nn.LeakyReLU(slope),
            nn.Unflatten(1, (first, *base)),
            SameConvTranspose2d(first, second, 5),
            nn.BatchNorm2d(second, EPS, MOMENTUM),
            nn.LeakyReLU(slope),
            SameConvTranspose2d(second, third, 5, stride=2),
            nn.BatchNorm2d(third, EPS, MOMENTUM),
            nn.LeakyReLU(slope),
            SameConvTranspose2d(third, image[0], 5, stride=2),
        )

    def forward(self, poses: Tensor, chosen: Tensor) -> Tensor:
        """Map poses [b, j, d] and the classes to decode, int64 [b] or [b, m] -> images [b, (m,) c, h, w] in [0, 1].

        A class of -1 stands for none, and is black.
        """
        fed = chosen_poses(poses, chosen)
        _, height, width = self.image
        images = torch.sigmoid(self.layers(fed.flatten(0, -2))[..., :height, :width])
        return blacken(images.unflatten(0, fed.shape[:-1]), chosen)
