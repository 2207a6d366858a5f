"""The step on CPU: one child of a few positions at a time, 16 parents side by side in a vector. See README.md.

Where there is one position, images may stand side by side: `linear_cpu.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchcaps.kernels.em import linear_cpu
from torchcaps.kernels.em.inputs import Geometry, Inputs
from torchcaps.kernels.em.loops import activation_loop, backward_loop, claim_loop, forward_loop
from torchcaps.kernels.em.sums import Result
from torchcaps.kernels.lanes import arrays, fill_lanes
from torchcaps.kernels.threads import ranges, run
from torchcaps.kernels.windows import parents_from_lanes, parents_to_lanes, window_places

NEAR = 2**13  # bytes of the parents of the positions that are taken together: five such arrays stay in a first cache


class _Arrays(NamedTuple):
    """What all loops take."""

    poses: np.ndarray  # [b, places, n, r c]
    activations: np.ndarray  # [b, places, n]
    weight: np.ndarray  # in lanes
    state: tuple[np.ndarray, ...]  # mean, scale and prior, [positions, j, d | 1]; each empty where there is none
    source: np.ndarray  # see `window_places`
    agreed: bool | None  # True: votes are compared by dot product; else None, for which numba leaves these loops out


class _Room:
    """What a thread's loops work in, for the positions that are taken together; 0 at first, and couplings 1."""

    def __init__(self, weight: np.ndarray, rows: int):
        _, blocks, columns, m, lanes = weight.shape
        of_eight = 8 * blocks * rows * m * lanes * weight.itemsize
        self.together = together = 8 if of_eight <= NEAR else 4  # positions: whole fours of rows
        self.dtype, self.number = weight.dtype, (blocks, together, 1, lanes)
        self.pose, self.coupling = (blocks, together * rows, m, lanes), (together, blocks, lanes)
        self.poses = together * rows, columns

    def child(self) -> tuple[np.ndarray, ...]:
        """Return a child, its votes and its coupling."""
        return self.zeros(self.poses), self.zeros(self.pose), np.ones(self.coupling, self.dtype)

    def parents(self) -> tuple[np.ndarray, ...]:
        """Return two numbers for each element of the parents, and one for each parent."""
        return self.zeros(self.pose), self.zeros(self.pose), self.zeros(self.number)

    def positions(self) -> np.ndarray:
        """Return a number for each position."""
        return self.zeros((self.together,))

    def zeros(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape, self.dtype)


def forward(inputs: Inputs, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return weighted means, squares about them, sums of weights as `sums.moments` takes them; the competition over
    windows.

    See `op.em_step`.
    """
    if not geometry.whole and fill_lanes(inputs.poses, inputs.weight, geometry.padding):
        return linear_cpu.forward(inputs, geometry)
    x, poses, weight = _arrays(inputs, geometry), inputs.poses, inputs.weight
    rows, routed = geometry.rows, inputs.mean is not None
    whole, images, places = geometry.whole and routed, len(poses), len(x.source)
    room = _Room(x.weight, rows)
    how = rows, room.together, x.agreed
    shape = images, places, weight.shape[0], rows * weight.shape[-1]
    centre, square, total = (poses.new_empty(images * places, *size) for size in (shape[2:], shape[2:], (shape[2], 1)))
    seen = poses.new_empty(*x.activations.shape, 2) if whole else poses.new_empty(0, 0, 0, 2)
    seen[..., 0], seen[..., 1] = -torch.inf, 0
    into, logits = tuple(arrays(centre, square, total)), seen.numpy()

    def work(_: int, first: int, end: int) -> None:
        if whole:
            first, end = first * places, end * places
            given = room.child(), room.parents()
            claim_loop(x.poses, x.weight, x.state, x.source, *how, first, end, logits, *given)
        space = room.child(), room.parents(), room.parents(), room.positions()
        forward_loop(*x[:4], logits, x.source, *how, routed, whole, first, end, into, *space)

    run(work, ranges(images if whole else images * places))
    return centre.view(shape), square.view(shape), total.view(*shape[:3], 1), seen


def backward(given: Result, inputs: Inputs, claims: Tensor, geometry: Geometry) -> list[Tensor]:
    """Return gradients of poses, weight and activations, and the sums that `sums.of_parents` takes.

    `claims` are what `forward` gave last. Threads take whole images, since windows of one image share children.
    """
    if not geometry.whole and fill_lanes(inputs.poses, inputs.weight, geometry.padding):
        return linear_cpu.backward(given, inputs, geometry)
    x, poses = _arrays(inputs, geometry), inputs.poses
    rows, routed, whole = geometry.rows, inputs.mean is not None, geometry.whole and inputs.mean is not None
    spans, places, room = ranges(len(poses)), len(x.source), _Room(x.weight, rows)
    how = rows, room.together, x.agreed
    result = tuple(arrays(*(each.flatten(0, 1) for each in given)))
    children, activity = torch.zeros_like(poses), torch.zeros_like(inputs.activations)
    weights = poses.new_zeros(len(spans), *x.weight.shape)  # of each thread
    sums = [poses.new_empty(each.shape) for each in x.state]
    seen, d_state = claims.numpy(), tuple(arrays(*sums))

    def work(part: int, first: int, end: int) -> None:
        first, end = first * places, end * places
        into = tuple(arrays(children.flatten(1, 2), activity.flatten(1, 2), weights[part]))
        if whole:
            own = room.child(), room.parents(), room.parents()
            own += room.zeros(room.pose), room.zeros(room.coupling), room.positions()
            activation_loop(x.poses, x.weight, x.state, result, seen, x.source, *how, first, end, into[1], *own)
        space = room.child(), *(room.parents() for _ in range(3))
        space += room.zeros(room.pose), room.zeros(room.poses), room.zeros(room.coupling)
        space += room.positions(), room.positions()
        backward_loop(*x[:4], result, seen, x.source, *how, routed, whole, first, end, into, d_state, *space)

    run(work, spans)
    found = [children, parents_from_lanes(weights.sum(0), inputs.weight.shape), activity]
    state = inputs.mean, inputs.scale, inputs.prior
    return [*found, *(each.view(x.shape) for each, x in zip(sums, state, strict=True) if x is not None)]


def _arrays(inputs: Inputs, geometry: Geometry) -> _Arrays:
    poses, weight, activations, mean, scale, prior = inputs
    children, activity, lanes = arrays(poses.flatten(1, 2), activations.flatten(1, 2), parents_to_lanes(weight))
    none = poses.new_empty(0, 0, 0)
    state = [none if x is None else x.flatten(0, 1) for x in (mean, scale)]
    state.append(none if prior is None else prior.flatten(0, 1).unsqueeze(-1))
    source = window_places(*poses.shape[1:3], *weight.shape[1:3], geometry.stride, geometry.padding)
    return _Arrays(children, activity, lanes, tuple(arrays(*state)), source, geometry.dot or None)
