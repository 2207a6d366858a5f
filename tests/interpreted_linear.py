"""The Triton kernels of dynamic routing and FM beside those of the CPU, without a GPU: run with TRITON_INTERPRET=1."""

import torch

import torchcaps.kernels.dynamic.cpu as dynamic_cpu
import torchcaps.kernels.dynamic.cuda as dynamic_cuda
import torchcaps.kernels.fm.cpu as fm_cpu
import torchcaps.kernels.fm.cuda as fm_cuda
from torchcaps.capsules import Capsules
from torchcaps.kernels import tiles
from torchcaps.votes.binary import binary_children, binary_weight

SIZES = {(3, 3, 2, 2, 3, 2): torch.float64, (1, 2, 1, 3, 1, 2): torch.float32}  # b, i, rows, columns, j, m


def equal(name, found, wanted, dtype):
    tolerance = 1e-11 if dtype == torch.float64 else 1e-4
    for a, e in zip(found, wanted, strict=True):
        assert (a is None) == (e is None), name
        if e is not None:
            torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance, msg=name)


def draw(dtype, *shape):
    return torch.randn(shape, dtype=dtype)


def dynamic(b, i, r, c, j, m, dtype):
    poses, weight, gradient = draw(dtype, b, i, r * c), draw(dtype, j, i, c, m), draw(dtype, b, j, r * m)
    binary = binary_children(Capsules(poses), r).poses, binary_weight(weight)
    for children, matrices, state, initial, xnor, cancel, last in [
        (poses, weight, None, None, False, False, False),
        (poses, weight, draw(dtype, b, j, r * m), draw(dtype, i, j), True, False, False),
        (poses, weight, draw(dtype, b, j, r * m), draw(dtype, i, j), False, False, True),
        (*binary, draw(dtype, b, j, r * m), draw(dtype, i, j), True, True, False),
    ]:
        inputs = children, matrices, state, initial, xnor, cancel
        equal("dynamic", [dynamic_cuda.forward(*inputs)], [dynamic_cpu.forward(*inputs)], dtype)
        found, wanted = (home.backward(gradient, *inputs, last) for home in (dynamic_cuda, dynamic_cpu))
        equal("dynamic, backward", found, wanted, dtype)


def fm(b, i, r, c, j, m, dtype):
    poses, weight = draw(dtype, b, i, r * c), draw(dtype, j, i, c, m)
    gradients = draw(dtype, b, j, r * m), draw(dtype, b, j, r * m)
    for children, parents, l2 in [(1, 1, True), (i, j, False)]:
        affine = draw(dtype, children, parents, r * m), draw(dtype, children, parents, r * m)
        inputs = poses, weight, *affine, l2, 1e-12
        equal("fm", fm_cuda.forward(*inputs), fm_cpu.forward(*inputs), dtype)
        equal("fm, backward", fm_cuda.backward(*gradients, *inputs), fm_cpu.backward(*gradients, *inputs), dtype)
    gradients = draw(dtype, i, j, r * m), draw(dtype, i, j, r * m)
    equal("moments", fm_cuda.moments(poses, weight), fm_cpu.moments(poses, weight), dtype)
    inputs = *gradients, poses, weight
    equal("moments, backward", fm_cuda.moments_backward(*inputs), fm_cpu.moments_backward(*inputs), dtype)


if __name__ == "__main__":
    torch.manual_seed(0)
    tiles.ELEMENTS, tiles.PROGRAMS = 32, 4  # several tiles and runs at small sizes
    for size, dtype in SIZES.items():
        dynamic(*size, dtype)
        fm(*size, dtype)
