"""The step on CPU: one child of a few positions at a time, 16 parents side by side in a vector. See README.md."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchcaps.kernels.em.loops import activation_loop, backward_loop, claim_loop, forward_loop
from torchcaps.kernels.em.op import Geometry, Inputs
from torchcaps.kernels.lanes import arrays
from torchcaps.kernels.threads import ranges, run
from torchcaps.kernels.windows import parents_from_lanes, parents_to_lanes, window_places

TOGETHER = 8  # positions at a time: whole fours of rows, few enough that what belongs to their parents stays near


class _Arrays(NamedTuple):
    """What all loops take."""

    poses: np.ndarray  # [b, places, n, r c]
    activations: np.ndarray  # [b, places, n]
    weight: np.ndarray  # in lanes
    state: tuple[np.ndarray, ...]  # mean, precision and prior, [positions, j, d | 1]; each empty where there is none
    source: np.ndarray  # see `window_places`


def forward(inputs: Inputs, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `op.em_step`."""
    x, poses, weight = _arrays(inputs, geometry), inputs.poses, inputs.weight
    rows, routed = geometry.rows, inputs.mean is not None
    whole, images, places = geometry.whole and routed, len(poses), len(x.source)
    shape = images, places, weight.shape[0], rows * weight.shape[-1]
    centre, square, total = (poses.new_empty(images * places, *size) for size in (shape[2:], shape[2:], (shape[2], 1)))
    seen = poses.new_empty(*x.activations.shape, 2) if whole else poses.new_empty(0, 0, 0, 2)
    seen[..., 0], seen[..., 1] = -torch.inf, 0
    into, logits = tuple(arrays(centre, square, total)), seen.numpy()

    def work(_: int, first: int, end: int) -> None:
        if whole:
            first, end = first * places, end * places
            claim_loop(x.poses, x.weight, x.state, x.source, rows, TOGETHER, first, end, logits)
        forward_loop(*x[:4], logits, x.source, rows, TOGETHER, routed, whole, first, end, into)

    run(work, ranges(images if whole else images * places))
    centre, square, total = centre.view(shape), square.view(shape), total.view(*shape[:3], 1)
    least = total.clamp_min(geometry.eps)
    found = centre * (total / least)
    return found, (square + total * (centre - found).square()) / least, total.squeeze(-1), seen


def backward(
    upstream: tuple[Tensor, Tensor, Tensor],
    inputs: Inputs,
    outputs: tuple[Tensor, Tensor, Tensor, Tensor],
    geometry: Geometry,
) -> list[Tensor]:
    """See `op.em_step_backward`. Threads take whole images, since windows of one image share children."""
    x, poses, (_, _, _, mean, precision, prior) = _arrays(inputs, geometry), inputs.poses, inputs
    rows, routed, whole = geometry.rows, mean is not None, geometry.whole and mean is not None
    spans, places = ranges(len(poses)), len(x.source)
    result = tuple(arrays(*_of_votes(*upstream, *outputs[:3], geometry.eps)))
    children, activity = torch.zeros_like(poses), torch.zeros_like(inputs.activations)
    weights = poses.new_zeros(len(spans), *x.weight.shape)  # of each thread
    sums = [poses.new_empty(each.shape) for each in x.state]
    seen, d_state = outputs[3].numpy(), tuple(arrays(*sums))

    def work(part: int, first: int, end: int) -> None:
        first, end = first * places, end * places
        into = tuple(arrays(children.flatten(1, 2), activity.flatten(1, 2), weights[part]))
        if whole:
            activation_loop(x.poses, x.weight, x.state, result, seen, x.source, rows, TOGETHER, first, end, into[1])
        backward_loop(*x[:4], result, seen, x.source, rows, TOGETHER, routed, whole, first, end, into, d_state)

    run(work, spans)
    found = [children, parents_from_lanes(weights.sum(0), inputs.weight.shape), activity]
    if mean is None or prior is None:
        return found
    first, d_prior = sums[0].view(mean.shape), sums[2].view(prior.shape)
    if precision is None:
        return [*found, first, d_prior]
    return [*found, 2 * precision * first, -sums[1].view(mean.shape), d_prior]


def _of_votes(
    d_mean: Tensor, d_spread: Tensor, d_total: Tensor, mean: Tensor, spread: Tensor, total: Tensor, eps: float
) -> list[Tensor]:
    """Mean, G and V [positions, j, d] and H [positions, j, 1], see README.md."""
    total = total.unsqueeze(-1)
    least = total.clamp_min(eps)
    of_mean = d_mean - 2 * d_spread * mean * (1 - total / least)
    moved = torch.where(total >= eps, -d_spread * spread, of_mean * mean).sum(-1, keepdim=True)
    found = mean, of_mean / least, d_spread / least, d_total.unsqueeze(-1) + moved / least
    return [each.flatten(0, 1).contiguous() for each in found]


def _arrays(inputs: Inputs, geometry: Geometry) -> _Arrays:
    poses, weight, activations, mean, precision, prior = inputs
    children, activity, lanes = arrays(poses.flatten(1, 2), activations.flatten(1, 2), parents_to_lanes(weight))
    none = poses.new_empty(0, 0, 0)
    state = [none if x is None else x.flatten(0, 1) for x in (mean, precision)]
    state.append(none if prior is None else prior.flatten(0, 1).unsqueeze(-1))
    source = window_places(*poses.shape[1:3], *weight.shape[1:3], geometry.stride, geometry.padding)
    return _Arrays(children, activity, lanes, tuple(arrays(*state)), source)
