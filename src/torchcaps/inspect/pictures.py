"""Tensors as pictures: sheets of tiles, PNG files, data URIs."""

from __future__ import annotations

import base64
import io

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = 64  # pixels a side of a tile in a page; larger images are made smaller

# of objects laid over each other, and of one that is alone; light added to a black ground
COLOURS = ((0.30, 0.85, 0.35), (0.16, 0.62, 1.0), (1.0, 0.42, 0.16), (0.85, 0.35, 0.9))
DIM = 0.3  # of the ground that they lie on
MORE, LESS = (226, 92, 30), (40, 96, 200)  # of a positive share, and of a negative one


def to_bytes(images: Tensor) -> Tensor:
    """Return images in [0, 1] as uint8; what lies outside is cut."""
    return (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def visible(images: Tensor) -> Tensor:
    """Return images [..., c, h, w] with one channel or three: of any other number the first."""
    return images if images.shape[-3] in (1, 3) else images[..., :1, :, :]


def shrink(images: Tensor, side: int = LARGEST) -> Tensor:
    """Return images [..., c, h, w] no larger than `side`, in their own proportions, with one channel or three."""
    images = visible(images)
    height, width = images.shape[-2:]
    if max(height, width) <= side:
        return images
    ratio = side / max(height, width)
    size = [max(1, round(height * ratio)), max(1, round(width * ratio))]
    flat = images.float().reshape(-1, *images.shape[-3:])
    return F.interpolate(flat, size, mode="bilinear", antialias=True).reshape(*images.shape[:-2], *size)


def to_sheet(tiles: Tensor) -> Tensor:
    """Return tiles [rows, columns, c, h, w] side by side: [rows * h, columns * w, c]."""
    return tiles.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)


def data_uri(sheet: Tensor) -> str:
    """Return uint8 [h, w, 1 | 3 | 4] as a PNG data URI."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(sheet.squeeze(-1).contiguous().numpy()).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def is_line_art(images: Tensor) -> bool:
    """Return whether images [b, c, h, w] in [0, 1] are bright strokes on black, which may as well be ink on paper."""
    return images.shape[1] == 1 and (images < 0.05).float().mean().item() > 0.25


def colour_parts(parts: Tensor, ground: Tensor) -> Tensor:
    """Return objects [b, m, c, h, w] in [0, 1], each in its own colour, over a dim `ground` [b, c, h, w]: [b, 3, h,
    w].
    """
    colours = torch.tensor([COLOURS[m % len(COLOURS)] for m in range(parts.shape[1])]).to(parts)  # [m, 3]
    light = torch.einsum("bmhw,mk->bkhw", parts.mean(2), colours.reshape(-1, 3))
    return (light + DIM * ground.mean(1, keepdim=True)).clamp(0, 1)


def heat(shares: Tensor, largest: float) -> Tensor:
    """Return shares [..., h, w] as colours with a transparency, uint8 [..., 4, h, w]: nothing at 0, opaque at
    `largest`.
    """
    colours = torch.tensor([MORE, LESS])[(shares < 0).long()].movedim(-1, -3)  # [..., 3, h, w]
    strength = (shares.abs() / max(largest, 1e-9)).clamp(0, 1) * 255
    return torch.cat([colours, strength.round().unsqueeze(-3)], -3).to(torch.uint8)
