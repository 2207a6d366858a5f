"""Changes of colour of whole batches, float [b, c, h, w] in [0, 1]; the results are cut to [0, 1].

As torchvision's ColorJitter defines them, but with a factor for each image. Those of saturation and hue need RGB.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from torchcaps.data.sending import sent

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def scale_brightness(batch: Tensor, factor: Tensor) -> Tensor:
    """Multiply each image by its `factor` [b]."""
    return (batch * _by_image(factor, batch)).clamp_(0, 1)


def scale_contrast(batch: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance of each image from its mean grey by its `factor` [b]."""
    mean = grey(batch).mean((1, 2, 3), keepdim=True)
    return (mean + (batch - mean) * _by_image(factor, batch)).clamp_(0, 1)


def scale_saturation(batch: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance of each pixel from its own grey by the image's `factor` [b]."""
    plain = grey(batch)
    return (plain + (batch - plain) * _by_image(factor, batch)).clamp_(0, 1)


def turn_hue(batch: Tensor, turn: Tensor) -> Tensor:
    """Add `turn` [b], in circles, to the hue of each pixel in HSV: a third leads from red to green."""
    value, low = batch.amax(1), batch.amin(1)  # [b, h, w]
    span = value - low
    r, g, b = batch.unbind(1)
    divisor = span.clamp(min=1e-12)
    sixths = torch.where(
        value == r, ((g - b) / divisor) % 6, torch.where(value == g, (b - r) / divisor + 2, (r - g) / divisor + 4)
    )
    sixths = sixths + 6 * _by_image(turn, batch)[:, 0]
    planes = []
    for offset in (5, 3, 1):  # the HSV hexagon: a channel falls from its value by as much of the span as its place says
        place = (offset + sixths) % 6
        planes.append(value - span * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(planes, 1).clamp_(0, 1)


def grey(batch: Tensor) -> Tensor:
    """Return the luma of RGB images, or the only channel: [b, 1, h, w]."""
    if batch.shape[1] == 1:
        return batch
    return (batch * _luma(batch.device, batch.dtype)).sum(1, keepdim=True)


@lru_cache(maxsize=8)
def _luma(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return `LUMA` [3, 1, 1], which a device is sent once: it would be waited for."""
    with torch.inference_mode(False):
        return torch.tensor(LUMA, device=device, dtype=dtype)[:, None, None]


def _by_image(factor: Tensor, batch: Tensor) -> Tensor:
    return sent(factor, batch.device)[:, None, None, None]
