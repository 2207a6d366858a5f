"""Windows over one dimension: signals and sequences, for all routings."""

from __future__ import annotations

import pytest
import torch
from routings import every_first

from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, LinearTransform, PooledTransform


def children(length: int = 7) -> Capsules:
    generator = torch.Generator().manual_seed(0)
    poses = torch.randn(2, length, 3, 4, generator=generator, dtype=torch.float64)
    return Capsules(poses, torch.rand(2, length, 3, generator=generator, dtype=torch.float64))


def layer(routing: str, options: dict, **how: int) -> CapsuleLayer:
    torch.manual_seed(0)
    module = CapsuleLayer(ConvTransform(3, 2, 4, 4, dims=1, **how), routing, **options).double()
    for parameter in module.routing.parameters():
        torch.nn.init.normal_(parameter, mean=0.3, std=0.5)
    return module.eval()


@every_first
def test_each_window_is_a_linear_layer_of_its_children(routing: str, options: dict) -> None:
    """Where children compete at each position apart."""
    module = layer(routing, options, kernel=3, stride=2)
    if getattr(module.routing, "scope", "window") == "image":
        module.routing.scope = "window"
    poses, active = children()
    found = module(Capsules(poses, active), 2).capsules
    hidden = module.routing.spec.hidden
    assert found.poses.shape == (2, 3, 2, 4 - hidden)
    alone = CapsuleLayer(LinearTransform(9, 2, 4, 4), routing, "plain", **options).double().eval()
    alone.transform.weight.data = module.transform.weight.data[:, 0].flatten(1, 2)
    alone.routing.load_state_dict(module.routing.state_dict())
    assert active is not None
    for place in range(3):
        here = slice(2 * place, 2 * place + 3)
        window = Capsules(poses[:, here].flatten(1, 2), active[:, here].flatten(1))
        for a, b in zip(alone(window, 2).capsules, found, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                torch.testing.assert_close(a, b[:, place], rtol=1e-9, atol=1e-10)


def test_children_compete_over_all_windows_that_see_them() -> None:
    """A child's shares add up to one over windows and parents; beyond the ends there is nobody."""
    votes = ConvTransform(3, 2, 4, 4, dims=1, stride=2, padding=1).double()(children())
    assert votes.space == (4,) and votes.present is not None
    logits = torch.randn(2, 4, 9, 2, dtype=torch.float64)
    shares = votes.compete(logits, scope="image").unflatten(2, (3, 3))  # [b, p, k, i, j]
    total = torch.zeros(2, 7, 3, dtype=torch.float64)
    for place in range(4):
        for offset in range(3):
            if 0 <= (at := 2 * place - 1 + offset) < 7:
                total[:, at] += shares[:, place, offset].sum(-1)
            else:
                assert not shares[:, place, offset].any()
    torch.testing.assert_close(total, torch.ones_like(total))


def test_sums_are_those_of_the_votes_themselves() -> None:
    transform = ConvTransform(3, 2, 4, 4, dims=1, stride=2, padding=1, matrix=True, coordinates=True).double()
    votes = transform(children())
    dense = votes.dense()
    torch.testing.assert_close(votes.combine(), dense.sum(2))
    coupling = torch.rand(2, 4, 9, 2, dtype=torch.float64)
    torch.testing.assert_close(votes.combine(coupling), torch.einsum("bpij,bpijd->bpjd", coupling, dense))


@pytest.mark.parametrize("routing", ["dynamic", "em"])
def test_sequences_are_routed_upwards_to_classes(routing: str) -> None:
    conv = ConvTransform(3, 2, 4, 4, dims=1)
    for top in (LinearTransform(2 * 5, 3, 4, 4), PooledTransform(2, 3, 4, 4), LinearTransform(10, 3, 4, 4, shared=5)):
        stack = CapsuleStack([CapsuleLayer(conv, routing), CapsuleLayer(top, routing)], 2)
        poses, active = children()
        poses = poses.float().requires_grad_()
        classes = stack(Capsules(poses, active.float()))[-1].capsules
        assert classes.poses.shape == (2, 3, 4)
        classes.poses.square().sum().backward()
        assert poses.grad is not None and poses.grad.isfinite().all()


def test_other_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"need children with positions \[b, t, i, d\], not \[2, 5, 5, 3, 4\]"):
        ConvTransform(3, 2, 4, 4, dims=1)(Capsules(torch.zeros(2, 5, 5, 3, 4)))
    with pytest.raises(ValueError, match=r"need children with positions \[b, h, w, i, d\], not \[2, 5, 3, 4\]"):
        ConvTransform(3, 2, 4, 4)(Capsules(torch.zeros(2, 5, 3, 4)))
    with pytest.raises(ValueError, match="dims is 3 and scrambled False; windows have 1 or 2 dimensions"):
        ConvTransform(3, 2, 4, 4, dims=3)
    with pytest.raises(ValueError, match="the children stand at 7 positions, but 5 share transforms"):
        LinearTransform(15, 2, 4, 4, shared=5)(children()._replace(poses=torch.zeros(2, 7, 3, 4)))
