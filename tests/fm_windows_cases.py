"""Sizes for the sums of FM agreement on windows, and the plain form that they are held against."""

import inverted_attention_cases
import torch

from torchcaps.kernels.fm_windows.plain import sums

# of votes of more than one element, which their length does not say all about
CASES = {name: case for name, case in inverted_attention_cases.CASES.items() if name != "ones"}
PER = {"one": (False, False), "child": (True, False), "pair": (True, True)}  # what has its own scale and shift


def inputs(case, per, dtype, seed=0):
    """Poses, weight, scale and shift with gradients, and the geometry (rows, stride, padding)."""
    b, h, w, n, r, c, m, j, k, stride, padding = case
    generator = torch.Generator().manual_seed(seed)
    children, parents = PER[per]
    affine = (k * k * n if children else 1, j if parents else 1, r * m)
    shapes = (b, h, w, n, r * c), (j, k, k, n, c, m), affine, affine
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return [x.requires_grad_() for x in tensors], (r, stride, padding)


def plain(tensors, geometry, l2, eps=1e-12):
    """The sums by the library's plain votes, their gradients, and the gradients that came from above."""
    outs = sums(*tensors, *geometry, l2, eps)
    upstream = [torch.linspace(-1, 1 + k, x.numel(), dtype=x.dtype).view(x.shape).sin() for k, x in enumerate(outs)]
    return outs, torch.autograd.grad(outs, tensors, upstream), upstream
