"""The step on CPU: one child of a few positions at a time, 16 parents side by side in a vector. See README.md.

A vector is 16 parents of one element, so that weights are read as they lie, softmax is a sum over lanes, and a child
is a number that all of them take. A weight that was read serves the rows of several positions. Sums are in float32, or
in float64 where an input is.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from torchcaps.kernels.attention.loops import backward_loop, forward_loop
from torchcaps.kernels.attention.op import widest
from torchcaps.kernels.simd import LANES
from torchcaps.kernels.threads import ranges, run

FEW, MANY = 8, 32  # positions at a time: whole fours of rows; many where the weights are too large for the cache
CACHE = 2**20  # bytes of a core's own cache


def forward(poses: Tensor, weight: Tensor, query: Tensor, rows: int, stride: int, padding: int) -> Tensor:
    """See `op.attend`."""
    arrays, source, together = _inputs(poses, weight, query, rows, stride, padding)
    out = torch.empty_like(arrays[2])
    run(
        lambda _, first, end: forward_loop(*_numpy(*arrays), source, rows, together, first, end, out.numpy()),
        ranges(len(out)),
    )
    return out.view(query.shape)


def backward(
    gradient: Tensor, poses: Tensor, weight: Tensor, query: Tensor, rows: int, stride: int, padding: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `op.attend_backward`. Threads take whole images, since windows of one image share children."""
    arrays, source, together = _inputs(poses, weight, query, rows, stride, padding)
    gradient = gradient.to(arrays[2].dtype).reshape(arrays[2].shape).contiguous()
    spans, places = ranges(len(poses)), len(source)
    children, parents = torch.zeros_like(arrays[0]), torch.empty_like(arrays[2])
    weights = arrays[1].new_zeros(len(spans), *arrays[1].shape)  # of each thread

    def work(part: int, first: int, end: int) -> None:
        into = _numpy(children, weights[part], parents)
        inputs = _numpy(gradient, *arrays)
        backward_loop(*inputs, source, rows, together, first * places, end * places, *into)

    run(work, spans)
    return children.view(poses.shape), _from_lanes(weights.sum(0), weight.shape), parents.view(query.shape)


def _inputs(
    poses: Tensor, weight: Tensor, query: Tensor, rows: int, stride: int, padding: int
) -> tuple[tuple[Tensor, Tensor, Tensor], np.ndarray, int]:
    """Children [b, places, n, r c], weight in lanes and query [positions, j, d]; then see `_window_places`, and FEW."""
    _, height, width, _, _ = poses.shape
    wide = widest(poses, weight, query, at_least=torch.float32)
    lanes = _to_lanes(weight.to(wide))
    arrays = poses.to(wide).flatten(1, 2).contiguous(), lanes, query.to(wide).flatten(0, 1).contiguous()
    source = _window_places(height, width, *weight.shape[1:3], stride, padding)
    return arrays, source, FEW if lanes.nbytes <= CACHE else MANY


def _numpy(*tensors: Tensor) -> list[np.ndarray]:
    return [x.detach().numpy() for x in tensors]


def _to_lanes(weight: Tensor) -> Tensor:
    """[j, kh, kw, n, c, m] -> [(kh kw n), j / 16, c, m, 16], with c, m and j filled up to 4, 2 and 16."""
    j, *_, c, m = weight.shape
    padded = F.pad(weight, (0, m % 2, 0, -c % 4) + (0, 0) * 3 + (0, -j % LANES))
    return padded.unflatten(0, (-1, LANES)).flatten(2, 4).permute(2, 0, 3, 4, 1).contiguous()


def _from_lanes(lanes: Tensor, shape: torch.Size) -> Tensor:
    j, kh, kw, n, c, m = shape
    weight = lanes.permute(1, 4, 0, 2, 3).flatten(0, 1)[:j, :, :c, :m]
    return weight.reshape(j, kh, kw, n, c, m)


@lru_cache(maxsize=64)
def _window_places(height: int, width: int, kh: int, kw: int, stride: int, padding: int) -> np.ndarray:
    """For each position and kernel offset the place y * width + x of the child, or -1 outside the image."""
    along = []
    for size, k in ((height, kh), (width, kw)):
        first = np.arange((size + 2 * padding - k) // stride + 1)[:, None] * stride - padding
        place = first + np.arange(k)
        along.append(np.where((place >= 0) & (place < size), place, -1))
    y, x = along[0][:, None, :, None], along[1][None, :, None, :]
    return np.ascontiguousarray(np.where((y >= 0) & (x >= 0), y * width + x, -1).reshape(-1, kh * kw))
