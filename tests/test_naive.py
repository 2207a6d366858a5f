"""What the library is measured against computes the same: poses and gradients of the naive forms."""

import naive
import pytest
import routing as routing_benchmark
import torch
from layers import children, layer
from routing import ITERATIONS, Size, build, fitting_batch, held_bytes

from torchcaps.layers import ConvTransform, LinearTransform

SMALL = {
    "linear": Size(lambda: LinearTransform(7, 3, 5, 4), (7, 5), 3, 1),
    "conv": Size(lambda: ConvTransform(2, 3, 4, 4, stride=2, matrix=True), (5, 7, 2, 4), 3, 6),
}


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("size", SMALL)
@pytest.mark.parametrize("name", ITERATIONS)
def test_naive_forms_equal_the_library(name, size, double):
    pair = build(SMALL[size], name, 3, torch.device("cpu"))
    for parameter in pair.layer.routing.parameters():
        torch.nn.init.normal_(parameter, mean=0.3, std=0.5)
    ours, plain = pair.ours(), pair.plain()
    plain = plain.reshape(ours.shape)
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)
    weights = torch.randn_like(ours)
    leaves = [pair.poses, pair.layer.transform.weight]
    gradients = [torch.autograd.grad((x * weights).sum(), leaves) for x in (ours, plain)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", ["em", "fm", "self-routing", "variational-bayes"])
def test_naive_forms_give_the_activations_of_the_library(name):
    """Of EM and variational Bayes at positions of their own, of FM, and of self-routing."""
    options = {"em": {"scope": "window", "temperature": 0.5}, "variational-bayes": {"scope": "window"}}
    capsules, module = children("conv-matrix"), layer("conv-matrix", name, **options.get(name, {}))
    get, transform = dict(module.routing.named_parameters()), module.transform
    votes = naive.conv_votes(capsules.poses, transform.weight, transform.rows, transform.stride)
    windows = naive.conv_windows(capsules.activations, 3, transform.stride)
    match name:
        case "em":
            _, expected = naive.em(votes, windows, get["activation.beta_u"], get["activation.beta_a"], 3, 0.5)
        case "fm":
            _, expected = naive.fm(votes, get["norm.weight"], get["norm.bias"])
        case "self-routing":
            _, expected = naive.self_routing(votes, windows, get["offset"])
        case _:
            _, expected = naive.variational_bayes(votes, windows, get["beta_a"], get["beta_u"], 3)
    found = module(capsules, 3).capsules.activations.flatten(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_what_is_held_and_the_batch_that_fits_are_measured(monkeypatch):
    pair = build(SMALL["linear"], "dynamic", 3, torch.device("cpu"))
    votes = 3 * 7 * 3 * 4 * 4  # bytes
    assert held_bytes(pair.plain) > votes
    assert fitting_batch(SMALL["linear"], "dynamic", 32, torch.device("cpu")) == 32
    monkeypatch.setattr(routing_benchmark, "available_memory", lambda: 50_000)
    assert 1 < fitting_batch(SMALL["linear"], "dynamic", 32, torch.device("cpu")) < 32
