"""Signs of weights as they are stored: eight in a byte."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_signs(positive: Tensor) -> Tensor:
    """Map bool [...] -> uint8 [ceil(n / 8)], lowest bit first, padded with 0."""
    flat = positive.flatten().to(torch.uint8)
    flat = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).unflatten(0, (-1, 8))
    places = torch.tensor([1 << k for k in range(8)], dtype=torch.uint8, device=flat.device)
    return (flat * places).sum(1, dtype=torch.uint8)


def unpack_signs(bits: Tensor, count: int) -> Tensor:
    """Map uint8 [n] -> bool [count]."""
    places = torch.tensor([1 << k for k in range(8)], dtype=torch.uint8, device=bits.device)
    return (bits.unsqueeze(1) & places).ne(0).flatten()[:count]
