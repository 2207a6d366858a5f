"""What holds kernels on a GPU passes a form that is right: the plain one in float32, summed in another order, and the
kernels of the CPU.
"""

import pytest
import torch
from test_on_device import CASES, check_step

from torchcaps.capsules import Capsules
from torchcaps.kernels.dynamic.plain import plain
from torchcaps.votes import ConvVotes

pytest.importorskip("triton")
import interpreted_inverted_attention
import interpreted_linear

SIZE = (128, 1152, 1, 8, 10, 16)  # CapsNet's: of its 24 million votes some are near 0


class Reversed:
    """A home of kernels whose votes are summed from the last column to the first: as right, but rounded apart."""

    def forward(self, *inputs):
        return self.step(*self.turned(*inputs))

    def backward(self, gradient, *inputs):
        leaves = [x.detach().requires_grad_() if isinstance(x, torch.Tensor) else x for x in inputs]
        tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
        return torch.autograd.grad(self.step(*self.turned(*leaves)), tensors, gradient, allow_unused=True)

    @staticmethod
    def turned(poses, weight, *others):
        columns = poses.unflatten(-1, (-1, weight.shape[-2]))
        return columns.flip(-1).flatten(-2), weight.flip(-2), *others


class Dynamic(Reversed):
    def step(self, poses, weight, state, initial, xnor, binary, last=False):
        return plain(poses, weight, state, initial, xnor, binary, last)


class Attention(Reversed):
    def step(self, poses, weight, query, rows, stride, padding, xnor, binary):
        votes = ConvVotes(Capsules(poses), weight, rows, stride, padding, binary)
        return votes.combine(votes.compete(votes.agree(query, "xnor" if xnor else "dot")))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["xnor", "last", "binary"])
def test_a_right_form_of_dynamic_routing_passes(how, monkeypatch):
    monkeypatch.setattr(interpreted_linear, "dynamic_cuda", Dynamic())
    torch.manual_seed(0)
    interpreted_linear.dynamic(*SIZE, torch.float32, "cpu", how)


@pytest.mark.slow
@pytest.mark.parametrize("how", interpreted_inverted_attention.FLAGS)
@pytest.mark.parametrize("name", interpreted_inverted_attention.LARGE)
def test_a_right_form_of_attention_passes(name, how, monkeypatch):
    monkeypatch.setattr(interpreted_inverted_attention, "cuda", Attention())
    case = interpreted_inverted_attention.LARGE[name]
    interpreted_inverted_attention.compare(name, case, how, torch.float32, "cpu")


@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("form", "routing"), CASES)
def test_right_kernels_pass_under_autocast(form, routing, precision):
    check_step(form, routing, precision, "cpu")
