"""Windows as the released code of inverted attention gathers them, against loops over its view of the memory."""

import numpy as np
import pytest
import torch
from layers import seen
from routings import oracle, positions_flat

from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, ConvTransform
from torchcaps.models import create_model
from torchcaps.routing.fused import find_kernel

CASES = {  # transform, and children [b, h, w, i, d]; places are not square, and fewer or more than elements of a pose
    "matrix": (lambda: ConvTransform(2, 3, 4, 4, kernel=3, stride=2, matrix=True, scrambled=True), (2, 5, 7, 2, 4)),
    "vector": (lambda: ConvTransform(2, 2, 7, 3, kernel=2, scrambled=True), (1, 3, 4, 2, 7)),
    "one-place": (lambda: ConvTransform(1, 2, 4, 4, kernel=2, matrix=True, scrambled=True), (2, 2, 2, 1, 4)),
}


def made(name):
    torch.manual_seed(0)
    transform, shape = CASES[name]
    return transform().double(), Capsules(torch.randn(shape, dtype=torch.float64))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("routing", ["dynamic", "inverted-attention", "fm"])
def test_scrambled_windows_equal_the_loops(name, routing):
    transform, capsules = made(name)
    layer = CapsuleLayer(transform, routing).double()
    for parameter in layer.routing.parameters():
        torch.nn.init.normal_(parameter, mean=0.3, std=0.5)
    np.testing.assert_allclose(layer.votes(capsules).dense().detach(), seen(transform, capsules).votes, rtol=1e-10)
    for iterations in (1, 3):
        parents = layer(capsules, iterations).capsules.poses
        poses, _ = oracle(layer, capsules, iterations)
        np.testing.assert_allclose(positions_flat(parents, (1, 1)).detach(), poses, rtol=1e-10, atol=1e-12)


def test_the_first_parent_sees_dozens_of_positions():
    """REFERENCE: dozens instead of nine. 16 elements of a pose at 7x7 places: of three rows of windows, the first."""
    transform = ConvTransform(2, 2, 16, 16, kernel=3, stride=2, matrix=True, scrambled=True)
    poses = torch.randn(1, 16, 16, 2, 16, requires_grad=True)
    parents = CapsuleLayer(transform, "inverted-attention")(Capsules(poses), 2).capsules.poses
    assert parents.shape == (1, 7, 7, 2, 16)
    (gradient,) = torch.autograd.grad(parents[0, 0, 0].square().sum(), poses)
    rows, columns = gradient[0].abs().sum((2, 3)).nonzero().T
    assert len(rows) > 36 and set(rows.tolist()) == set(range(7)) and columns.max() == 14


def test_gradients_of_scrambled_windows():
    transform, capsules = made("matrix")
    layer = CapsuleLayer(transform, "inverted-attention").double()
    poses = capsules.poses.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer(Capsules(x), 2).capsules.poses, poses, fast_mode=True)


def test_scrambled_windows_have_plain_steps():
    transform = CASES["matrix"][0]()
    layer = CapsuleLayer(transform, "inverted-attention")
    assert not layer.fused and "scrambled" in repr(layer)
    with pytest.raises(ValueError, match="no kernel for InvertedAttention on ScrambledVotes"):
        find_kernel("fused", transform, layer.routing)
    assert CapsuleLayer(ConvTransform(2, 3, 4, 4, kernel=3, stride=2, matrix=True), "inverted-attention").fused


def test_the_released_network_learns_in_all_its_parameters():
    torch.manual_seed(0)
    narrow = {"channels": 4, "capsules": 3, "pose": 4, "iterations": 3}
    ours, released = (create_model("attention-simple-cifar10", **narrow, scrambled=each) for each in (False, True))
    released.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 32, 32)
    scores = released(images).scores
    assert (scores - ours(images).scores).abs().max() > 1e-3
    scores.square().sum().backward()
    assert [key for key, p in released.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ConvTransform(2, 3, 4, 4, padding=1, scrambled=True), "padding is 1 and coordinates False"),
        (lambda: ConvTransform(2, 3, 4, 4, coordinates=True, scrambled=True), "padding is 0 and coordinates True"),
        (lambda: CapsuleLayer(made("matrix")[0], "xnodr").double()(made("matrix")[1]), "no poses to binarize"),
        (lambda: CapsuleLayer(made("matrix")[0], "em").double()(made("matrix")[1]), "needs activations"),
        (
            lambda: CapsuleLayer(made("matrix")[0], "inverted-attention", scope="image").double()(made("matrix")[1]),
            "use scope 'window'",
        ),
        (lambda: create_model("attention-simple-cifar10", scrambled=True, activations=True), "activations is True"),
        (lambda: create_model("attention-simple-cifar10", scrambled=True, scope="image"), "scope is 'image'"),
    ],
)
def test_what_scrambled_windows_do_not_have_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
