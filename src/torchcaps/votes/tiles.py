"""Work on a few parents at a time, and forget what can be computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from torchcaps.capsules import transformed

TILES = 8
T = TypeVar("T")


def parent_tiles(parents: int, most: int | None = None) -> list[slice]:
    """Return the parents in about eight runs, or in runs of `most` where these are shorter: the temporary of one is
    at most about an eighth of the votes.
    """
    size = min(-(-parents // TILES), most or parents)
    return [slice(start, min(start + size, parents)) for start in range(0, parents, size)]


def cut(x: Tensor, tiles: Sequence[slice], dim: int) -> Sequence[Tensor]:
    """Return the tiles of `x` along `dim`; all of it for each where that dimension is broadcast."""
    return [x] * len(tiles) if x.shape[dim] == 1 else x.split([tile.stop - tile.start for tile in tiles], dim)


def recompute(function: Callable[..., T], *tensors: Tensor) -> T:
    """Return `function(*tensors)`, of which only the tensors are held for backward. A pure function is assumed.

    Under a transform of `torch.func` and in forward mode all is held that the function makes, the size of the votes: a
    checkpoint is made of hooks on saved tensors, which these refuse.
    """
    if torch.compiler.is_exporting() or not torch.is_grad_enabled() or transformed():
        return function(*tensors)
    return checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore
