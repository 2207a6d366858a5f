"""Binary votes: signs and their surrogate gradients, XnODR and XnIDR, the xnorized convolution, packed layers."""

import copy
import io
import math

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from exporting import onnx_error
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import CASES, children, layer

from torchcaps.capsules import Capsules, binarize, sign, squash
from torchcaps.layers import CapsuleLayer, CapsuleStack, LinearTransform, XnorConv2d
from torchcaps.packed import pack

BINARY = ["xnodr", "xnodr-xnidr"]
THRESHOLDS = ["zero", "midpoint"]
PACKABLE = [name for name in CASES if "placed" not in name]


def straight(x, threshold=0.0):
    """The surrogate of a sign: its value, and the gradient of x clipped to [-1, 1]."""
    clipped = (x - threshold).clamp(-1, 1)
    return clipped + (torch.where(x > threshold, 1.0, -1.0).to(x.dtype) - clipped).detach()


def surrogate(x, dim=-1):
    return straight(x) * x.abs().mean(dim, keepdim=True).detach()


def test_the_sign_of_zero_is_minus_one_and_the_scale_a_mean():
    x = torch.tensor([[0.0, -0.0, 3.0, -1.0]])
    assert binarize(x).tolist() == [[-1.0, -1.0, 1.0, -1.0]]
    assert sign(x, torch.tensor(-1.0)).tolist() == [[1.0, 1.0, 1.0, -1.0]]
    assert binarize(torch.zeros(2, 3)).abs().max() == 0


def test_the_gradient_passes_where_the_absolute_value_is_at_most_one():
    x = torch.tensor([-1.5, -1.0, -0.2, 0.0, 1.0, 1.01], requires_grad=True)
    (gradient,) = torch.autograd.grad(sign(x).sum(), x)
    assert gradient.tolist() == [0, 1, 1, 1, 1, 0]
    (gradient,) = torch.autograd.grad(sign(x, torch.tensor(1.0)).sum(), x)
    assert gradient.tolist() == [0, 0, 0, 1, 1, 1]


def surrogate_routing(routing, poses, weight, iterations=3):
    """Dynamic routing with its votes and logits written out; poses [b, i, c], weight [j, i, c, m]."""
    if routing == "xnidr":
        votes = torch.einsum("bic,jicm->bijm", poses, weight)
    else:  # whole numbers first
        scale = poses.abs().mean(-1)[:, :, None, None] * weight.abs().mean(2).transpose(0, 1)
        votes = torch.einsum("bic,jicm->bijm", straight(poses), straight(weight)) * scale.detach()
    seen = (lambda x: x) if routing == "xnodr" else surrogate
    logits, parents = torch.zeros(votes.shape[:-1], dtype=votes.dtype), torch.empty(0)
    for _ in range(iterations):
        parents = squash((logits.softmax(-1).unsqueeze(-1) * votes).sum(1))
        logits = logits + (seen(votes) * seen(parents).unsqueeze(1)).sum(-1)
    return parents


@pytest.mark.parametrize("routing", ["xnodr", "xnidr", "xnodr-xnidr"])
@pytest.mark.parametrize("name", ["linear-vector", "linear-one-child", "linear-one-parent"])
def test_gradients_equal_those_of_the_surrogate(routing, name):
    module, capsules = layer(name, routing), children(name)
    weight, poses = module.transform.weight, capsules.poses.requires_grad_()
    weight.data *= 2 / weight.std()
    assert (weight.abs() > 1).any() and (weight.abs() < 1).any() and (poses.abs() > 1).any()
    ours = module(Capsules(poses), 3).capsules.poses
    wanted = surrogate_routing(routing, poses, weight)
    torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-13)
    torch.manual_seed(5)
    direction = torch.randn_like(ours)
    for a, b in zip(
        *(torch.autograd.grad((y * direction).sum(), [poses, weight]) for y in (ours, wanted)), strict=True
    ):
        assert b.abs().max() > 1e-4
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


def test_xnidr_adds_the_agreement_of_each_output_to_the_logits():
    """The sum of binarized outputs, not the binarized sum."""
    module, capsules = layer("linear-vector", "xnidr"), children("linear-vector")
    votes, seen = module.votes(capsules), []
    CapsuleStack([module], 3)(capsules, visit=lambda level, t, step: seen.append(step))
    outputs = [step.capsules.poses.unsqueeze(1) for step in seen]
    torch.testing.assert_close(seen[2].state, binarize(outputs[0]) + binarize(outputs[1]) + binarize(outputs[2]))
    dense = binarize(votes.dense())  # [b, 1, i, j, d]
    logits = sum((dense * binarize(x).unsqueeze(2)).sum(-1) for x in outputs[:2])
    torch.testing.assert_close(seen[2].coupling, logits.softmax(-1))


def test_children_from_a_relu_keep_their_zeros_apart_from_their_positive_half():
    module = layer("linear-vector", "xnodr")
    capsules = Capsules(children("linear-vector").poses.relu())
    poses = module.votes(capsules).poses.squeeze(-2).squeeze(1)
    assert torch.equal(poses > 0, capsules.poses > 0) and (capsules.poses == 0).any()


@pytest.mark.parametrize("routing", ["xnodr", "xnidr", "xnodr-xnidr"])
@pytest.mark.parametrize("size", [1e-6])  # others: test_routing_finite.py
def test_half_precision_stays_finite(routing, size):
    module, capsules = layer("conv-padded", routing, dtype=torch.float32), children("conv-padded", dtype=torch.float32)
    poses = (size * capsules.poses).requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        out = module(Capsules(poses), 3).capsules.poses
    out.float().sum().backward()
    assert out.isfinite().all() and poses.grad.isfinite().all()
    assert module.transform.weight.grad.isfinite().all()


def xnor_convolution(images, weight, bias, stride, padding, midpoint):
    """Eq. 20 in loops."""
    b, channels, h, w = images.shape
    out, _, kh, kw = weight.shape
    space = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip((h, w), padding, (kh, kw), stride, strict=True)]
    result = np.zeros((b, out, *space))
    for n, f, y, x in np.ndindex(result.shape):
        middle = [(z.min() + z.max()) / 2 if midpoint else 0.0 for z in (images[n], weight[f])]
        count, strength = 0, 0.0
        for ky, kx in np.ndindex(kh, kw):
            iy, ix = y * stride[0] - padding[0] + ky, x * stride[1] - padding[1] + kx
            if 0 <= iy < h and 0 <= ix < w:
                strength += sum(abs(images[n, c, iy, ix]) for c in range(channels)) / channels / (kh * kw)
                for c in range(channels):
                    signs = images[n, c, iy, ix] > middle[0], weight[f, c, ky, kx] > middle[1]
                    count += 1 if signs[0] == signs[1] else -1
        result[n, f, y, x] = count * strength * abs(weight[f]).mean() + bias[f]
    return result


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), ((1, 2), (2, 1), (0, 1)), (3, 2, 0)], ids=["same", "uneven", "strided"]
)
def test_xnorized_convolution_equals_equation_20(kernel, stride, padding, threshold):
    torch.manual_seed(0)
    module = XnorConv2d(3, 2, kernel, stride, padding, threshold=threshold).double()
    images = torch.randn(2, 3, 4, 5, dtype=torch.float64).relu() - float(threshold == "midpoint")
    wanted = xnor_convolution(
        images.numpy(), *(p.detach().numpy() for p in module.parameters()), module.stride, module.padding,
        threshold == "midpoint",
    )  # fmt: skip
    np.testing.assert_allclose(module(images).detach(), wanted, rtol=1e-10, atol=1e-13)


def test_xnorized_convolution_has_the_gradient_of_its_surrogate():
    torch.manual_seed(0)
    module = XnorConv2d(2, 3, 3, padding=1).double()
    module.weight.data *= 5
    images = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    ours = module(images)
    scale = F.conv2d(
        images.abs().mean(1, keepdim=True), torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64), padding=1
    )
    scale = (scale * module.weight.abs().mean((1, 2, 3))[:, None, None]).detach()
    assert module.bias is not None
    wanted = F.conv2d(straight(images), straight(module.weight), padding=1) * scale + module.bias[:, None, None]
    direction = torch.randn_like(ours)
    inputs = [images, *module.parameters()]
    for a, b in zip(*(torch.autograd.grad((y * direction).sum(), inputs) for y in (ours, wanted)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", PACKABLE)
@pytest.mark.parametrize("routing", BINARY)
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_a_packed_layer_equals_the_float_one(name, routing, threshold):
    module = layer(name, routing, dtype=torch.float32, threshold=threshold)
    capsules, packed = children(name, dtype=torch.float32), pack(module)
    torch.testing.assert_close(packed(capsules, 3).capsules.poses, module(capsules, 3).capsules.poses)
    assert not list(packed.transform.parameters()) and len(packed.transform.state_dict()) == 2


@settings(max_examples=25, deadline=None)
@given(
    i=st.integers(1, 9),
    j=st.integers(1, 5),
    c=st.integers(1, 17),
    m=st.integers(1, 9),
    zeros=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_any_shape_packs(i, j, c, m, zeros, seed):
    torch.manual_seed(seed)
    module = CapsuleLayer(LinearTransform(i, j, c, m), "xnodr")
    module.transform.weight.data *= torch.rand_like(module.transform.weight) >= zeros
    capsules, packed = Capsules(torch.randn(2, i, c)), pack(module)
    torch.testing.assert_close(packed(capsules, 2).capsules.poses, module(capsules, 2).capsules.poses)
    assert packed.transform.bits.numel() == math.ceil(i * j * c * m / 8)


@pytest.mark.parametrize(
    ("d", "scales", "share"),
    [(8, torch.float32, 6.4), (8, torch.float16, 32 / 3), (16, torch.float32, 32 / 3), (16, torch.float16, 16)],
)
def test_bytes_of_a_packed_weight(d, scales, share):
    packed = pack(CapsuleLayer(LinearTransform(256, 10, d, 16), "xnodr"), scales)
    stored = sum(buffer.nbytes for buffer in packed.transform.buffers())
    assert stored / math.prod(packed.transform.shape) == pytest.approx(4 / share)
    file = io.BytesIO()
    torch.save(packed.state_dict(), file)
    assert file.tell() < 256 * 10 * d * 16 * 4 / share + 4096


def test_half_precision_scales_give_the_float_form_with_the_same_rounded_scales():
    module, capsules = (
        layer("linear-vector", "xnodr", dtype=torch.float32),
        children("linear-vector", dtype=torch.float32),
    )
    packed, rounded = pack(module, torch.float16), copy.deepcopy(module)
    scales = module.transform.weight.detach().abs().mean(-2, keepdim=True).half().float()
    rounded.transform.weight.data = sign(module.transform.weight.detach()) * scales
    out = packed(capsules, 3).capsules.poses
    torch.testing.assert_close(out, rounded(capsules, 3).capsules.poses)
    assert not torch.allclose(out, module(capsules, 3).capsules.poses, rtol=1e-7, atol=0)


def test_a_packed_state_loads_without_the_float_weights():
    packed, capsules = pack(layer("conv-matrix", "xnodr")), children("conv-matrix")
    file = io.BytesIO()
    torch.save(packed.state_dict(), file)
    file.seek(0)
    with torch.device("meta"):
        empty = pack(CapsuleLayer(CASES["conv-matrix"][0](), "xnodr"))
    assert all(x.is_meta for x in empty.state_dict().values())
    empty.load_state_dict(torch.load(file, weights_only=True), assign=True)
    for other in (empty, copy.deepcopy(packed)):
        assert torch.equal(other(capsules, 3).capsules.poses, packed(capsules, 3).capsules.poses)


def test_packed_layers_stand_in_stacks_and_leave_the_float_layer_alone():
    torch.manual_seed(0)
    below, above = (
        CapsuleLayer(LinearTransform(6, 4, 3, 5), "xnodr"),
        CapsuleLayer(LinearTransform(4, 2, 5, 3), "xnidr"),
    )
    capsules, before = Capsules(torch.randn(2, 6, 3)), copy.deepcopy(below.state_dict())
    floats, packed = CapsuleStack([below, above]), CapsuleStack([pack(below), above])
    torch.testing.assert_close(packed(capsules)[-1].capsules.poses, floats(capsules)[-1].capsules.poses)
    assert all(torch.equal(x, before[name]) for name, x in below.state_dict().items())


@pytest.mark.parametrize(
    "make",
    [
        lambda: pack(layer("linear-flattened", "xnodr", dtype=torch.float32)),
        pytest.param(
            lambda: pack(layer("conv-vector", "xnodr", dtype=torch.float32), torch.float16), marks=pytest.mark.slow
        ),
        lambda: XnorConv2d(2, 3, 3, padding=1),
    ],
    ids=["packed-linear", "packed-convolution", "convolution"],
)
def test_compiles_and_exports(make):
    torch.compiler.reset()
    torch.manual_seed(0)
    module = make().eval()
    if isinstance(module, XnorConv2d):
        images, function = torch.randn(2, 2, 5, 4), module
    else:
        name = "linear-flattened" if module.transform.sizes.children == 12 else "conv-vector"
        images = children(name, dtype=torch.float32).poses

        class Poses(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = module

            def forward(self, poses):
                return self.layer(Capsules(poses), 2).capsules.poses

        function = Poses()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), function(images))
    assert onnx_error(function, images) < 1e-5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack(layer("linear-vector", "xnidr")), "'xnidr' are not binary (XnIDR binarizes votes"),
        (lambda: pack(layer("linear-vector", "dynamic")), "'dynamic' are not binary: 'xnodr'"),
        (lambda: pack(layer("linear-vector", "xnodr"), torch.int8), "torch.int8"),
        (lambda: layer("conv-placed", "xnodr"), "coordinates"),
        (lambda: XnorConv2d(1, 1, 3, threshold="mean"), "'mean'"),
        (lambda: pack(layer("conv-matrix", "xnodr"))(Capsules(torch.ones(1, 7, 4))), "[b, h, w, i, d]"),
        (lambda: pack(layer("linear-vector", "xnodr"))(Capsules(torch.ones(1, 6, 5))), "(6, 5)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)


def test_the_oracle_of_binary_vectors_knows_zero():
    assert oracles.xnorized(np.array([0.0, 2.0, -4.0])).tolist() == [-2.0, 2.0, -2.0]
