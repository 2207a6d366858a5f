"""The Triton kernels beside the plain form: `python tests/interpreted_inverted_attention.py cuda`.

Without a GPU a few small sizes run in Triton's interpreter: TRITON_INTERPRET=1 and no argument.
"""

import sys

import torch
from held import Held
from inverted_attention_cases import CASES, distance, inputs, plain

from torchcaps.kernels import window_tiles
from torchcaps.kernels.inverted_attention import cuda

SMALL = {name: CASES[name] for name in ("conv-padded", "conv-vector", "linear-matrix", "ones")}
MANY = {  # parents in tiles, the last of which is not full, and children in runs
    "linear-many": (2, 1, 1, 3, 2, 1, 1, 9, 1, 1, 0),
    "conv-many": (1, 2, 3, 1, 1, 2, 1, 9, 2, 1, 0),
}
LARGE = {"linear-1000": (33, 1, 1, 37, 4, 4, 4, 1000, 1, 1, 0), "conv-300": (2, 5, 7, 3, 3, 3, 5, 300, 3, 2, 1)}


def compare(name, case, dtype, device):
    tensors, geometry = inputs(case, dtype)
    wanted, gradients, upstream = plain(tensors, geometry)
    upstream, *tensors = (x.detach().to(device) for x in (upstream, *tensors))
    found = [cuda.forward(*tensors, *geometry), *cuda.backward(upstream, *tensors, *geometry)]
    for a, b in zip(found, [wanted, *gradients], strict=True):
        far = distance(a.cpu(), b)
        assert far < (1e-12 if dtype == torch.float64 else 1e-5), f"{name} in {dtype}: off by {far}"


if __name__ == "__main__":
    held = Held()
    device = sys.argv[1] if sys.argv[1:] else "cpu"
    cases = {"": SMALL, "in tiles": MANY} if device == "cpu" else {"": CASES | LARGE}
    for how, some in cases.items():
        if how:
            window_tiles.WIDE, cuda.PROGRAMS = 8, 4
        for name, case in some.items():
            held(f"{name} in float64 {how}", compare, name, case, torch.float64, device)
            if device != "cpu" or name == "conv-vector":
                held(f"{name} in float32 {how}", compare, name, case, torch.float32, device)
    held.end()
