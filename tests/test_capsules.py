"""The pure functions on poses."""

import torch
from exporting import onnx_error

from torchcaps.capsules import lengths, midpoint, squash


def test_squash_and_lengths():
    poses = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-20, 4e-20]], dtype=torch.float64, requires_grad=True)
    out = squash(poses)
    torch.testing.assert_close(out[0], torch.tensor([3.0, 4.0], dtype=torch.float64) / 5 * 25 / 26)
    assert out[1:].abs().max() < 1e-6
    (gradient,) = torch.autograd.grad(out.sum() + lengths(poses).sum(), poses)
    assert gradient.isfinite().all()
    half = squash(torch.full((16,), 200.0, dtype=torch.float16))
    assert half.dtype == torch.float16 and abs(half.float().norm() - 1) < 1e-2


def test_zero_capsules_stay_finite_when_exported():
    """The exporter takes x + 1e-24 for x."""

    class Both(torch.nn.Module):
        def forward(self, poses):
            return squash(poses) * lengths(poses).unsqueeze(-1).rsqrt()

    poses = torch.randn(2, 3, 4)
    poses[:, 1] = 0
    assert onnx_error(Both(), poses) < 1e-6


def test_the_middle_of_large_numbers_is_finite():
    x = torch.full((2, 3), 6e4, dtype=torch.float16)
    assert torch.equal(midpoint(x, (1,)), x[:, :1])
