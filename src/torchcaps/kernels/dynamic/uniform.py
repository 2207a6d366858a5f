"""The first iteration, where every child shares itself evenly: the sum of all votes is a matrix product.

Torch's own, on any device: nothing is to be compiled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchcaps.capsules import no_autocast

MANY = 64  # rows of all images from which on one product of turned weights is faster than one for each parent


def forward(poses: Tensor, weight: Tensor) -> Tensor:
    """Return sum_i v / J [b, j, d] of poses [b, i, rows * columns] and weight [j, i, columns, m]."""
    parents, children, columns, m = weight.shape
    images, rows = len(poses), poses.shape[2] // columns
    u = _rows(poses, rows)
    with no_autocast(poses):
        if len(u) < MANY:  # [j, b rows, m], of weights as they lie
            sums = torch.matmul(u, weight.flatten(1, 2)).unflatten(1, (images, rows)).movedim(0, 1)
        else:  # [b rows, j m]
            sums = u @ weight.movedim(0, 2).reshape(children * columns, parents * m)
            sums = sums.unflatten(1, (parents, m)).unflatten(0, (images, rows)).movedim(1, 2)
    return sums.flatten(2).contiguous() / parents


def backward(gradient: Tensor, poses: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradients of poses and weight."""
    parents, children, columns, m = weight.shape
    images, rows = len(poses), poses.shape[2] // columns
    u = _rows(poses, rows)
    dv = (gradient / parents).unflatten(2, (rows, m)).movedim(1, 2).flatten(0, 1)  # [b rows, j, m], for any child
    with no_autocast(poses):
        # du_i = sum_j dv_j W_ij', and dW_ij = sum over images and rows of u_i' dv_j
        d_u = dv.flatten(1) @ weight.permute(0, 3, 1, 2).reshape(parents * m, children * columns)
        if len(u) < MANY:
            d_weight = torch.matmul(u.t(), dv.movedim(1, 0)).view_as(weight)
        else:
            d_weight = (u.t() @ dv.flatten(1)).unflatten(1, (parents, m)).unflatten(0, (children, columns))
            d_weight = d_weight.movedim(2, 0).contiguous()
    d_poses = d_u.unflatten(1, (children, columns)).unflatten(0, (images, rows)).movedim(1, 2)
    return d_poses.flatten(2).contiguous(), d_weight


def _rows(poses: Tensor, rows: int) -> Tensor:
    """Map poses [b, i, rows * columns] -> [b rows, i columns]."""
    return poses.unflatten(2, (rows, poses.shape[2] // rows)).movedim(1, 2).flatten(2).flatten(0, 1)
