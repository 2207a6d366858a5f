"""How many child capsules a discriminative network needs: its accuracy when only the most important are kept."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor

from torchcaps.capsules import lengths
from torchcaps.config import LossConfig
from torchcaps.data import Batches
from torchcaps.inspect.measured import measure
from torchcaps.layers import CapsuleLayer, LinearTransform, flatten_space
from torchcaps.models import CapsNet


@torch.no_grad()
def child_importance(model: CapsNet, images: Tensor) -> Tensor:
    """Return what each primary capsule gives to the layer above, [i]: its mean length times the size of its b_ij W_ij.

    Either factor alone says nothing: b may shrink while W grows, and a capsule of large weights may never be active.
    `images` are [b, c, h, w]; `model` is left in evaluation mode.
    """
    transform, coupling = _first_layer(model)
    poses, _ = flatten_space(model.eval()(images).capsules[0])
    size = torch.linalg.vector_norm(transform.weight, dim=(-2, -1))  # [j, i]
    return lengths(poses).mean(0) * torch.linalg.vector_norm(size * coupling.T, dim=0)


@torch.no_grad()
def accuracy_by_kept(
    fabric: Fabric, model: CapsNet, batches: Batches, loss: LossConfig, counts: Sequence[int]
) -> list[tuple[int, float]]:
    """Return accuracy, share in [0, 1], of `model` when only so many of its primary capsules reach the layer above.

    Those are kept that `child_importance` puts first, on the first batch; nothing is trained again.

    Args:
        fabric, batches, loss: see `measure`.
        model: a `CapsNet` that routes towards discriminative quality; it is left in evaluation mode.
        counts: how many are kept, each at least 1 and at most as many as there are.
    """
    images, _ = next(batches.epoch(0))
    order = child_importance(model, images).argsort(descending=True)
    if wrong := [count for count in counts if not 1 <= count <= len(order)]:
        raise ValueError(f"{wrong[0]} capsules cannot be kept: there are {len(order)}; at least 1 must be")
    found = []
    for count in counts:
        pruned = copy.deepcopy(model)
        _first_layer(pruned)[1][order[count:]] = 0
        found.append((count, measure(fabric, pruned, batches, loss).right.float().mean().item()))
    return found


def _first_layer(model: CapsNet) -> tuple[LinearTransform, Tensor]:
    """Return the transform and the constant coupling [i, j] of the layer above the primary capsules.

    Raises:
        ValueError: when it has another routing.
    """
    layer = model.stack.layers[0]
    assert isinstance(layer, CapsuleLayer) and isinstance(layer.transform, LinearTransform)
    coupling = layer.routing.constant_coupling()
    if coupling is None:
        raise ValueError(f"routing {layer.routing.spec.name!r} has no coefficients that say which capsules are needed")
    return layer.transform, coupling
