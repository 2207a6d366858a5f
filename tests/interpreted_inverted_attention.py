"""The Triton kernels beside the plain form: `python tests/interpreted_inverted_attention.py cuda`.

Without a GPU a few small sizes run in Triton's interpreter: TRITON_INTERPRET=1 and no argument.
"""

import sys

import torch
from inverted_attention_cases import CASES, distance, inputs, plain

from torchcaps.kernels.inverted_attention import cuda

SMALL = ("conv-padded", "conv-vector", "linear-matrix", "ones")


def compare(name, dtype, device):
    tensors, geometry = inputs(CASES[name], dtype)
    wanted, gradients, upstream = plain(tensors, geometry)
    upstream, *tensors = (x.detach().to(device) for x in (upstream, *tensors))
    found = [cuda.forward(*tensors, *geometry), *cuda.backward(upstream, *tensors, *geometry)]
    for a, b in zip(found, [wanted, *gradients], strict=True):
        far = distance(a.cpu(), b)
        assert far < (1e-12 if dtype == torch.float64 else 1e-5), f"{name} in {dtype}: off by {far}"


if __name__ == "__main__":
    device = sys.argv[1] if sys.argv[1:] else "cpu"
    for name in SMALL if device == "cpu" else CASES:
        compare(name, torch.float64, device)
    for name in SMALL[1:2] if device == "cpu" else CASES:
        compare(name, torch.float32, device)
