"""The feedback agreement unit of EncapNet (Li et al. 2018, section 3.2 and appendix B), for training only.

A generator maps a layer's output back to what the layer saw, a critic takes features of both, and the loss is the
divergence between the two batches of features. Unlike in a GAN, both are trained to lower it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from torchcaps.capsules import widen
from torchcaps.encapnet.capconv import over_channels, squash_maps
from torchcaps.encapnet.sinkhorn import sinkhorn_divergence
from torchcaps.layers.gather import gather_batch
from torchcaps.names import check_choice

Divergence = Callable[[Tensor, Tensor], Tensor]


class Generator(nn.Module):
    """Transposed convolution 3x3, batch norm, ReLU, and squash where maps are capsules: from higher maps to lower ones.

    Args:
        in_channels, out_channels: of the higher and the lower maps.
        stride: 2 where the lower maps are twice as large, 1 where they are equally large.
        capsules: types per position in both; None is the vanilla generator (Table 3, d4): no groups and no squash.
        groups: of the convolution: "pose" (the paper), one for each element of a higher pose, which sees this element
            of all capsules and makes as large a share of the lower maps, in the order (element, capsule); or
            "capsules" (the authors' code: 32), one for each capsule, which makes the capsule of its type below.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        capsules: int | None,
        groups: Literal["pose", "capsules"] = "pose",
    ):
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"stride is {stride}; it must be 1 or 2")
        check_choice("groups", groups, ("pose", "capsules"))
        count = 1 if capsules is None else capsules if groups == "capsules" else max(1, in_channels // capsules)
        for channels in (in_channels, out_channels):
            if channels < 1 or channels % (capsules or 1) or channels % count:
                raise ValueError(
                    f"{channels} channels cannot be shared out among {capsules or 1} capsules and {count} groups"
                )
        self.capsules, self.by_element = capsules, capsules is not None and groups == "pose"
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, 3, stride, padding=1, groups=count)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Map [b, in, h, w] -> [b, out, *size]."""
        out = F.relu(self.norm(self.convolve(maps, size)))
        return out if self.capsules is None else squash_maps(out, self.capsules)

    def convolve(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the convolution alone, of maps [b, (g d), h, w] whose capsules are side by side, to such maps."""
        if not self.by_element:
            return self.conv(maps, output_size=size)
        assert self.capsules is not None
        out = self.conv(swap(maps, self.capsules), output_size=size)  # [b, (d g), h, w]
        return swap(out, out.shape[1] // self.capsules)


def swap(maps: Tensor, first: int) -> Tensor:
    """Map maps [b, (g d), h, w] of g = `first` -> [b, (d g), h, w]: channels of capsules become those of elements, and
    back.
    """

    def change(maps: list[Tensor], dim: int) -> Tensor:
        return maps[0].unflatten(dim, (first, -1)).transpose(dim, dim + 1).flatten(dim, dim + 1)

    return over_channels(change, maps)


def critic(channels: int, size: tuple[int, int]) -> nn.Sequential:
    """Return two 3x3 convolutions with stride 2, to a quarter of the channels and to one, each with batch norm and
    ReLU.

    Only as many of them as leave 2x2 places of maps of `size`: the cosine of single non-negative numbers has no
    gradient, that of two seldom, and batch norm refuses a single value. Sides below 5 keep the first, below 3 none.
    """
    blocks, height, width = nn.Sequential(), *size
    for out in (max(1, channels // 4), 1):
        height, width = (height + 1) // 2, (width + 1) // 2
        if min(height, width) < 2:
            break
        blocks.append(nn.Sequential(nn.Conv2d(channels, out, 3, 2, 1), nn.BatchNorm2d(out), nn.ReLU()))
        channels = out
    return blocks


class OptimalTransportUnit(nn.Module):
    """How far what is generated from a layer's output is from what the layer saw, over the batch.

    With several processes the features of all are compared, so that each has the divergence of the joint batch; the
    statistics of batch norm stay each process's own.

    Args:
        in_channels: of the higher maps.
        out_channels: of the lower maps.
        size: (height, width) of the lower maps.
        stride: of the generator, 2 or 1.
        capsules, groups: see `Generator`.
        extractor: whether the critic is there; without it raw maps are compared (Table 3, d3).
        divergence: of generated and true features; the paper's is `sinkhorn_divergence` as it stands; others are
            `functools.partial(sinkhorn_divergence, cost="l2")` (d5) and `kl_divergence` (Table 3b).

    Raises:
        ValueError: for channels that cannot be grouped, maps of another size, or a batch in training that leaves batch
            norm a single value.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        stride: int = 2,
        capsules: int | None = 32,
        groups: Literal["pose", "capsules"] = "pose",
        extractor: bool = True,
        divergence: Divergence = sinkhorn_divergence,
    ):
        super().__init__()
        if min(size) < 1:
            raise ValueError(f"maps of {size[0]}x{size[1]} were asked for; each side must be at least 1")
        self.generator = Generator(in_channels, out_channels, stride, capsules, groups)
        self.critic = critic(out_channels, size) if extractor else nn.Sequential()
        self.size, self.divergence = size, divergence

    def forward(self, higher: Tensor, lower: Tensor) -> Tensor:
        """Return higher maps [b, in, h, w] and the lower ones [b, out, *size] that they came from -> a scalar."""
        if lower.shape[2:] != self.size:
            raise ValueError(f"the lower maps are {tuple(lower.shape[2:])}, but the unit was built for {self.size}")
        if self.training and lower[:, 0].numel() == 1:
            raise ValueError("batch norm cannot be trained on one image of 1x1: use a larger batch or larger maps")
        made, seen = self.critic(self.generator(higher, self.size)), self.critic(lower)
        return self.divergence(*(gather_batch(widen(features)) for features in (made, seen)))
