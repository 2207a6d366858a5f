"""No NaN and no infinity, forward and backward, at the extremes of every routing."""

import pytest
import torch
from layers import children, layer
from routings import every_variant

from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, LinearTransform

EXTREMES = [
    (torch.float32, "zero"), (torch.float32, "identical"), (torch.float32, 1e-6), (torch.float32, 1e4),
    (torch.bfloat16, "zero"), (torch.bfloat16, "identical"), (torch.bfloat16, 1e-6), (torch.bfloat16, 1e4),
    (torch.float16, "zero"), (torch.float16, "identical"), (torch.float16, 1e2),
]  # fmt: skip


@pytest.mark.parametrize("name", ["linear-vector", "conv-padded"])
@every_variant
@pytest.mark.parametrize(("dtype", "kind"), EXTREMES, ids=lambda x: str(x).removeprefix("torch."))
def test_stays_finite(name, routing, options, dtype, kind):
    """Half precision is autocast, as in training."""
    module, capsules = layer(name, routing, dtype=torch.float32, **options), children(name, dtype=torch.float32)
    known = {"zero": torch.zeros_like(capsules.poses), "identical": torch.ones_like(capsules.poses)}
    poses = (known[kind] if kind in known else kind * capsules.poses).requires_grad_()
    activations = capsules.activations.clone().requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        parents = module(Capsules(poses, activations), 3).capsules
    assert all(x.isfinite().all() for x in parents if x is not None)
    sum(x.float().sum() for x in parents if x is not None).backward()
    gradients = [poses.grad, *(p.grad for p in module.parameters() if p.grad is not None)]
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize(("count", "saturated"), [(4, False), (5, True), (14, True), (100, True)])
def test_fm_saturates_in_half_precision_where_its_docstring_says(count, saturated):
    """Identical votes of 100, without l2 and mean; with mean the bound is between 14 and 15 of them."""
    for mean in (False, True):
        transform = LinearTransform(count, 1, 2, 2)
        transform.weight.data.copy_(torch.eye(2))
        module = CapsuleLayer(transform, "fm", l2=False, mean=mean, batch_norm=None)
        with torch.autocast("cpu", dtype=torch.float16):
            parents = module(Capsules(torch.full((1, count, 2), 100.0)))
        poses, activations = parents.capsules
        exact = (count - 1) / 2 * 1e4 * (1 if mean else count)
        assert poses.dtype == torch.float16 and activations.dtype == torch.float32
        assert (exact > 65504) == (saturated if not mean else count >= 15)
        torch.testing.assert_close(poses.float(), torch.full((1, 1, 2), min(exact, 65504.0)), rtol=1e-3, atol=0)
        torch.testing.assert_close(activations, torch.full((1, 1), 2 * exact), rtol=1e-3, atol=0)
