"""The CUDA homes of the fused steps on CPU tensors: what they promise to torch, and where they run."""

import shutil
from unittest import mock

import pytest
import torch
from fused import CONV, LINEAR
from interpreted import interpreted, needs_interpreter, needs_triton, without_launches
from torch import nn

from torchcaps.capsules import Capsules
from torchcaps.kernels.dynamic.op import dynamic_step, dynamic_step_backward
from torchcaps.kernels.em.inputs import Geometry, Inputs
from torchcaps.kernels.em.op import em_step, em_step_backward
from torchcaps.kernels.fm.op import fm_moments, fm_moments_backward, fm_sums, fm_sums_backward
from torchcaps.kernels.fm_windows.op import fm_window_sums, fm_window_sums_backward
from torchcaps.kernels.inverted_attention.op import attend, attend_backward
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, LinearTransform

pytestmark = needs_triton

# two of each at least, so that every stride counts: images, children, rows, columns, parents, columns of a vote
B, I, R, C, J, M = 2, 3, 2, 2, 2, 3


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def linear(dtype):
    """Children, weights, parents and logits of a linear layer."""
    return [draw(*shape, dtype=dtype) for shape in ((B, I, R * C), (J, I, C, M), (B, J, R * M), (I, J))]


def windows(dtype):
    """Children, weights and parents of two windows that share a child, and rows, stride and padding."""
    shapes = (B, 2, 3, 2, R * C), (J, 2, 2, 2, C, M), (B, 2, J, R * M)
    return [draw(*shape, dtype=dtype) for shape in shapes], (R, 1, 0)


def check(operation, *inputs):
    """What it gives has the shapes, types and strides of its fake, and no memory of its inputs; no kernel runs."""
    with without_launches():
        torch.library.opcheck(operation, inputs, test_utils=("test_schema", "test_faketensor"))


every_type = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@every_type
@pytest.mark.parametrize(
    ("routed", "starts", "flags"),
    [(False, False, (False, False, False)), (True, False, (False, False, True)), (True, True, (True, True, False))],
    ids=["first", "dot", "xnor"],
)
def test_dynamic_is_an_operation(dtype, routed, starts, flags):
    poses, weight, state, initial = linear(dtype)
    state, initial = state if routed else None, initial if starts else None
    with interpreted():
        check(dynamic_step, poses, weight, state, initial, *flags)
        gradient = draw(B, J, R * M, dtype=dtype)
        check(dynamic_step_backward, gradient, poses, weight, state, initial, *flags)


@every_type
def test_fm_is_two_operations(dtype):
    poses, weight, gradient, _ = linear(dtype)
    affine = draw(1, J, R * M, dtype=dtype), draw(1, J, R * M, dtype=dtype) + 1
    of_pairs = draw(I, J, R * M, dtype=dtype)
    with interpreted():
        check(fm_sums, poses, weight, *affine, True, 1e-12)
        check(fm_sums_backward, gradient, gradient + 1, poses, weight, *affine, True, 1e-12)
        check(fm_moments, poses, weight)
        check(fm_moments_backward, of_pairs, of_pairs + 1, poses, weight)


@every_type
def test_fm_on_windows_is_an_operation(dtype):
    (poses, weight, gradient), geometry = windows(dtype)
    affine = draw(8, J, R * M, dtype=dtype), draw(8, J, R * M, dtype=dtype) + 1
    with interpreted():
        check(fm_window_sums, poses, weight, *affine, *geometry, True, 1e-12)
        check(fm_window_sums_backward, gradient, gradient + 1, poses, weight, *affine, *geometry, True, 1e-12)


@pytest.mark.parametrize("flags", [(False, False), (True, True)], ids=["dot", "xnor"])
@every_type
def test_attention_is_an_operation(dtype, flags):
    tensors, geometry = windows(dtype)
    with interpreted():
        check(attend, *tensors, *geometry, *flags)
        check(attend_backward, draw(B, 2, J, R * M, dtype=dtype), *tensors, *geometry, *flags)


@pytest.mark.parametrize("whole", [False, True], ids=["window", "image"])
@pytest.mark.parametrize("rule", ["first", "dot", "distance"])
@every_type
def test_em_is_an_operation(dtype, rule, whole):
    (poses, weight, mean), geometry = windows(dtype)
    activations, prior = draw(*poses.shape[:-1], dtype=dtype).sigmoid(), draw(B, 2, J, dtype=dtype)
    precision = draw(B, 2, J, R * M, dtype=dtype).sigmoid() if rule == "distance" else None
    state = (None, None, None) if rule == "first" else (mean, precision, prior)
    inputs, flags = (poses, weight, activations, *state), (*geometry, whole, rule == "dot", 1e-8)
    with interpreted():
        check(em_step, *inputs, *flags)
        with without_launches():
            outs = em_step(*inputs, *flags)
        check(em_step_backward, *(torch.ones_like(x) for x in outs[:3]), *inputs, *outs, *flags)


def test_autocast_leaves_the_sums_of_a_home_alone():
    """Means of squares in half precision would be off by a percent, or infinite."""
    poses, weight, state, _ = linear(torch.float32)
    with interpreted():
        wanted = *fm_moments(poses, weight), dynamic_step(poses, weight, None, None, False, False, False)
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", dtype):
                found = *fm_moments(poses, weight), dynamic_step(poses, weight, None, None, False, False, False)
                of_first = dynamic_step_backward(state, poses, weight, None, None, False, False, False)
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
            assert torch.equal(of_first[1], dynamic_step_backward(state, poses, weight, None, None, *[False] * 3)[1])


def test_a_home_runs_on_the_device_of_its_inputs():
    """Not on the current one: of an operation's tensors the first says which it is."""
    poses, weight, *_ = linear(torch.float32)
    seen = []
    with (
        interpreted() as homes,
        mock.patch.object(torch.cuda, "device_of", lambda x: seen.append(x) or mock.MagicMock()),
        mock.patch.object(homes["fm"], "moments", lambda *inputs: (draw(I, J, R * M), draw(I, J, R * M))),
        torch.autocast("cpu", torch.bfloat16),
    ):
        fm_moments(poses, weight)
    assert len(seen) == 1 and seen[0].shape == poses.shape


def test_weights_that_a_kernel_cannot_count_are_refused():
    """By which a layer's trial finds it plain; batches may be of any size."""
    poses, state = torch.empty(2, 2**15, 8, device="meta"), torch.empty(2, 1024, 16, device="meta")
    weight = torch.empty(1024, 2**15, 8, 16, device="meta")
    maps, windows = poses[:, None, None], weight[:, None, None]
    first = Inputs(maps, windows, maps[..., 0], None, None, None)
    with interpreted() as homes, without_launches():
        calls = [
            lambda: homes["dynamic"].forward(poses, weight, state, None, False, False),
            lambda: homes["fm"].forward(poses, weight, state[:1], state[:1], True, 1e-12),
            lambda: homes["fm_windows"].forward(maps, windows, state[:1], state[:1], 1, 1, 0, True, 1e-12),
            lambda: homes["inverted_attention"].forward(maps, windows, state[:, None], 1, 1, 0, False, False),
            lambda: homes["em"].forward(first, Geometry(1, 1, 0, False, False)),
        ]
        for call in calls:
            with pytest.raises(ValueError, match=r"the weights are 4,294,967,296 numbers, and the kernel takes less"):
                call()


class Every(nn.Module):
    """A fused layer of each routing beside each other; the mean of what they give."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.ModuleList(self._stack(LinearTransform(6, 2, 3, 2), name) for name in LINEAR)
        self.conv = nn.ModuleList(
            self._stack(ConvTransform(1, 2, 3, 2, kernel=2, stride=2, padding=1), name) for name in CONV
        )

    @staticmethod
    def _stack(transform, routing):
        return CapsuleStack([CapsuleLayer(transform, routing, "fused")], 2)

    def forward(self, poses, activations):
        maps, flat = Capsules(poses, activations), Capsules(poses.flatten(1, 3), activations.flatten(1, 3))
        ends = [stack(flat)[-1].capsules for stack in self.linear] + [stack(maps)[-1].capsules for stack in self.conv]
        return torch.stack([x.square().mean() for end in ends for x in end if x is not None]).mean()


@needs_interpreter
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_compiled_training_step_equals_one_that_is_not():
    """By inductor, which goes by the strides that the fakes promise."""
    children = draw(2, 3, 2, 1, 3), draw(2, 3, 2, 1).sigmoid()
    gradients = []
    with interpreted(elements=2048, programs=1):
        for compiled in (False, True):
            module = Every()
            loss = (torch.compile(module) if compiled else module)(*children)
            loss.backward()
            gradients.append([loss.detach(), *(p.grad for p in module.parameters() if p.grad is not None)])
    assert len(gradients[0]) > len(LINEAR) + len(CONV)
    for found, wanted in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)
