"""Sizes for the attention kernels, and the plain form that they are held against."""

import torch

from torchcaps.capsules import Capsules
from torchcaps.votes import ConvVotes
from torchcaps.votes.binary import binary_children, binary_weight

# name: (batch, height, width, children, rows, columns, columns of a vote, parents, kernel, stride, padding)
CASES = {
    "conv": (2, 5, 7, 2, 2, 2, 2, 3, 3, 2, 0),
    "conv-padded": (3, 4, 5, 1, 2, 2, 2, 2, 3, 2, 1),
    "conv-wide": (2, 4, 4, 2, 3, 3, 3, 33, 3, 1, 1),
    "conv-vector": (1, 4, 3, 2, 1, 3, 7, 17, 2, 1, 0),
    "linear-63": (3, 1, 1, 63, 1, 5, 3, 7, 1, 1, 0),
    "linear-matrix": (5, 1, 1, 9, 3, 3, 2, 16, 1, 1, 0),
    "linear-many": (37, 1, 1, 11, 2, 3, 3, 5, 1, 1, 0),  # images for vectors of 16
    "conv-alone": (18, 2, 2, 3, 1, 4, 5, 3, 2, 1, 0),
    "ones": (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0),
}

FLAGS = {"dot": (False, False), "xnor": (True, False), "both": (True, True)}  # signs compared, and of binary votes


def inputs(case, dtype, seed=0, binary=False):
    """Poses, weight and query with gradients, and the geometry (rows, stride, padding)."""
    b, h, w, n, r, c, m, j, k, stride, padding = case
    generator = torch.Generator().manual_seed(seed)
    places = ((h + 2 * padding - k) // stride + 1) * ((w + 2 * padding - k) // stride + 1)
    shapes = (b, h, w, n, r * c), (j, k, k, n, c, m), (b, places, j, r * m)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    if binary:
        tensors[:2] = binary_children(Capsules(tensors[0]), r).poses, binary_weight(tensors[1])
    return [x.requires_grad_() for x in tensors], (r, stride, padding)


def in_eighths(x):
    """Whole eighths near `x`: votes of them are exact in float32, in whatever order they are summed.

    So no form may differ in the sign of a vote, or in whether it is at most 1, where XNOR is held to the last digits:
    of the millions of votes of random numbers a few are so near 0 that rounding turns their sign.
    """
    return (8 * x).round() / 8


def plain(tensors, geometry, xnor=False, binary=False):
    """The sums by the library's plain votes, their gradients, and the gradient that came from above."""
    poses, weight, query = tensors
    votes = ConvVotes(Capsules(poses), weight, *geometry, binary)
    out = votes.combine(votes.compete(votes.agree(query, "xnor" if xnor else "dot")))
    upstream = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape).sin()
    return out, torch.autograd.grad(out, tensors, upstream), upstream


def distance(a, b):
    """Largest difference over the largest size in b; 0 where b is 0 and a too."""
    return ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1e-30)).item()
