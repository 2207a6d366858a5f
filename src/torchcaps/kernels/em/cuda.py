"""The step on CUDA, in Triton: a program has a few positions and a run of their children, or children of one type.

There are no atomic sums. See README.
"""

# A kernel's sizes are given by name.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import torch
import triton
from torch import Tensor

from torchcaps.kernels.em.cuda_gradients import activation_kernel, child_kernel, state_kernel
from torchcaps.kernels.em.cuda_kernels import claim_kernel, forward_kernel
from torchcaps.kernels.em.inputs import Geometry, Inputs
from torchcaps.kernels.em.sums import Result, joined
from torchcaps.kernels.tiles import FUSION
from torchcaps.kernels.window_tiles import check_countable, pad, runs_of, summed

ELEMENTS = 2048  # of the votes that a program has at a time, at most: what registers hold, with parents and sums
WARP = 256  # of them, a warp
PROGRAMS = 1024  # wanted


def forward(inputs: Inputs, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `cpu.forward`."""
    sizes, given, poses = _sizes(inputs, geometry), _given(inputs), inputs.poses
    seen = _claims(given, sizes)
    grid, share, tile = _by_positions(sizes)
    shape = grid[1], len(poses), sizes["places"], sizes["J"], sizes["R"] * sizes["M"]
    centre, square, total = poses.new_empty(shape), poses.new_empty(shape), poses.new_empty(*shape[:4], 1)
    forward_kernel[grid](*given, seen, centre, square, total, share, **sizes, **tile)
    return *joined(centre, square, total), seen if geometry.whole else poses.new_empty(0, 0, 0, 2)


def backward(given: Result, inputs: Inputs, claims: Tensor, geometry: Geometry) -> list[Tensor]:
    """See `cpu.backward`."""
    sizes, arrays, images = _sizes(inputs, geometry), _given(inputs), len(inputs.poses)
    arrays = [*arrays, claims if geometry.whole else _claims(arrays, sizes), *given]
    children, activity = torch.zeros_like(inputs.poses), torch.zeros_like(inputs.activations)
    grid, share, tile = _by_children(sizes, images)
    if sizes["WHOLE"]:
        activation_kernel[grid](*arrays, activity, share, **sizes, **tile)
    weights = children.new_zeros(grid[1], *arrays[1].shape)
    child_kernel[grid](*arrays, activity, children, weights, share, **sizes, **tile)
    grid, share, tile = _by_positions(sizes)
    state = [x for x in (inputs.mean, inputs.scale, inputs.prior) if x is not None]
    sums = [x.new_empty(grid[1], *x.shape) for x in state]
    if sums:
        state_kernel[grid](*arrays, activity, sums[0], sums[-2], sums[-1], share, **sizes, **tile)
    return [children, weights.sum(0).permute(4, 0, 1, 2, 3, 5), activity, *map(summed, sums)]


def _claims(given: list[Tensor], sizes: dict[str, int]) -> Tensor:
    """Return what children that compete over more parents than a program has must know, see `claim_kernel`; nothing
    where none does.
    """
    poses = given[0]
    images, height, width, types, _ = poses.shape
    if not sizes["WHOLE"]:
        return poses.new_empty(0, 0, 0, 2)
    seen = poses.new_empty(images, height * width, types, 2)
    seen[..., 0], seen[..., 1] = -torch.inf, 0
    grid, share, tile = _by_children(sizes, images)
    claim_kernel[grid](*given, seen, share, **sizes, **tile)
    return seen


def _given(inputs: Inputs) -> list[Tensor]:
    """Return what every kernel takes first: weights as [kh, kw, n, c, j, m], and an empty tensor for what there is
    not.
    """
    weight, none = inputs.weight.permute(1, 2, 3, 4, 0, 5).contiguous(), inputs.poses.new_empty(0)
    return [none if x is None else x for x in inputs._replace(weight=weight)]


def _sizes(inputs: Inputs, geometry: Geometry) -> dict[str, int]:
    """Return the sizes and the flags that every kernel takes."""
    check_countable(inputs.weight)
    images, height, width, types, _ = inputs.poses.shape
    parents, kh, kw, _, columns, m = inputs.weight.shape
    down, across = ((size + 2 * geometry.padding - k) // geometry.stride + 1 for size, k in ((height, kh), (width, kw)))
    routed = inputs.mean is not None
    alone = height * width * kh * kw == 1  # each child is seen by one window
    padded = pad(parents, geometry.rows, m, tiled=not routed or geometry.whole or alone)
    return {
        "count": images * down * across,
        "height": height,
        "width": width,
        "across": across,
        "places": down * across,
        "stride": geometry.stride,
        "padding": geometry.padding,
        "types": types,
        "KH": kh,
        "KW": kw,
        "J": parents,
        "R": geometry.rows,
        "C": columns,
        "M": m,
        **padded,
        "ROUTED": routed,
        "DOT": routed and geometry.dot,
        "WHOLE": routed and (geometry.whole or padded["JP"] < parents),
    }


def _by_positions(sizes: dict[str, int]) -> tuple[tuple[int, int, int], int, dict[str, int]]:
    """Return a grid of (tiles of positions, runs of children, tiles of parents), as many as keep the device busy,
    how many children a run has, and the size of a tile of positions.
    """
    children, across = sizes["KH"] * sizes["KW"] * sizes["types"], triton.cdiv(sizes["J"], sizes["JP"])
    tile = _tile(sizes, triton.cdiv(sizes["count"] * children * across, PROGRAMS))
    tiles = triton.cdiv(sizes["count"], tile["T"])
    runs, share = runs_of(children, triton.cdiv(PROGRAMS, tiles * across))
    return (tiles, runs, across), share, tile


def _by_children(sizes: dict[str, int], images: int) -> tuple[tuple[int, int], int, dict[str, int]]:
    """Return a grid of (types of children, runs of images), how many positions a run has, and the size of a tile of
    them.
    """
    share = triton.cdiv(images, triton.cdiv(PROGRAMS, sizes["types"]))
    positions = share * sizes["places"]
    return (sizes["types"], triton.cdiv(images, share)), positions, _tile(sizes, positions)


def _tile(sizes: dict[str, int], positions: int) -> dict[str, int]:
    """Return positions at a time, a power of two up to that which holds `positions`, and the warps for them."""
    elements = sizes["JP"] * sizes["RP"] * sizes["MP"]
    count = min(max(1, ELEMENTS // elements), triton.next_power_of_2(positions))
    return {"T": count, "num_warps": min(8, max(1, count * elements // WARP)), **FUSION}
