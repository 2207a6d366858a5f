"""Whether the pose of the class that wins tells how an image was changed.

Capsules are to hold the pose of what they find. Here each image is changed by an amount that is known, and a linear map
of the winning pose, one for each class, is fitted to it on one half of the images and tried on the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchcaps.examine.found import Equivariance
from torchcaps.examine.sample import Move, Sample, take
from torchcaps.models import Model

DRAWS = 4  # changes of each image
RANGES = {  # of uniform draws; shifts in shares of the shorter side
    "angle": (-30.0, 30.0),
    "down": (-1 / 8, 1 / 8),
    "right": (-1 / 8, 1 / 8),
    "scale": (0.8, 1.2),
    "shear": (-20.0, 20.0),
}
RIDGE = 1e-6  # of the mean square of the poses' elements
SPARE = 2  # changed images for each number that is fitted, at least


def measure_equivariance(model: Model, sample: Sample, seed: int = 0) -> list[Equivariance]:
    """Return R^2 on held-out images of a change's amount from the winning pose: by angle, shift down and right, scale,
    shear.

    R^2 is 1 where the pose tells the amount exactly, 0 where it tells nothing, and below where the map does not carry
    over. Each image is changed four times, and all of its changes are on one side of the split. Classes with fewer than
    two changed images for each number that is fitted are left out. None for a network without capsules.

    Args:
        model: in evaluation mode.
        sample: the images; of several classes in one, the likeliest wins.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    count, found = len(sample), []
    rows = torch.arange(count).repeat(DRAWS)
    for by, (low, high) in RANGES.items():
        amount = low + (high - low) * torch.rand(len(rows), generator=generator)
        if by in ("down", "right"):
            amount = (amount * sample.side).round()
        still = vars(Move.none(len(rows)))
        move = Move(**still | {by: amount.to(still[by].dtype)})
        winning = _winning_poses(model, sample, rows, move)
        if winning is None:
            return []
        found.append(Equivariance(by, *held_out_r2(*winning, amount, rows, rows % 2 == 0)))
    return found


@torch.no_grad()
def _winning_poses(model: Model, sample: Sample, rows: Tensor, move: Move) -> tuple[Tensor, Tensor] | None:
    """Return the poses [n, d] of the classes [n] that win, on the CPU."""
    poses, winners = [], []
    for images, _ in sample.stream(rows, move):
        output = take(model, images)
        if not output.capsules or output.capsules[-1].poses.shape[:2] != output.scores.shape:
            return None
        winner = output.scores.argmax(1)
        won = output.capsules[-1].poses[torch.arange(len(winner), device=winner.device), winner]
        poses.append(won.cpu().double())
        winners.append(winner.cpu())
    return torch.cat(poses), torch.cat(winners)


def held_out_r2(
    poses: Tensor, classes: Tensor, amount: Tensor, images: Tensor, fitted: Tensor
) -> tuple[float | None, int]:
    """Return R^2 of `amount` [n] from `poses` [n, d], by a linear map for each of `classes` [n] that is fitted where
    `fitted`.

    Returns:
        R^2 over all others whose class has such a map, None where there are none, and of how many distinct `images`,
        int64 [n], they are.
    """
    error = total = 0.0
    amount, measured = amount.double(), torch.zeros_like(fitted)
    for each in classes.unique():
        mine = classes == each
        x, y = poses[mine & fitted], amount[mine & fitted]
        tried, wanted = poses[mine & ~fitted], amount[mine & ~fitted]
        if len(x) < SPARE * (x.shape[1] + 1) or not len(tried):
            continue
        centre, middle = x.mean(0), y.mean()
        gram = (x - centre).T @ (x - centre)
        gram += RIDGE * gram.diagonal().mean().clamp_min(torch.finfo(gram.dtype).tiny) * torch.eye(len(gram))
        weight = torch.linalg.lstsq(gram, ((x - centre).T @ (y - middle))[:, None]).solution[:, 0]
        error += (wanted - middle - (tried - centre) @ weight).square().sum().item()
        total += (wanted - wanted.mean()).square().sum().item()
        measured |= mine & ~fitted
    return (1 - error / total if total > 0 else None), len(images[measured].unique())
