"""The Triton kernels of FM on windows beside the plain form: `python tests/interpreted_fm_windows.py cuda`.

Without a GPU a few small sizes run in Triton's interpreter: TRITON_INTERPRET=1 and no argument.
"""

import sys

import torch
from fm_windows_cases import CASES, inputs, plain
from held import Held
from inverted_attention_cases import distance

from torchcaps.kernels import window_tiles
from torchcaps.kernels.fm_windows import cuda

SMALL = {"conv-small": (2, 3, 3, 1, 2, 2, 2, 2, 2, 2, 1), "conv-vector": CASES["conv-vector"]}
MANY = {"conv-many": (1, 2, 3, 1, 1, 2, 2, 5, 2, 1, 0)}  # parents in tiles, the last not full, and children in runs
LARGE = {"conv-300": (2, 5, 7, 3, 3, 3, 5, 300, 3, 2, 1)}


def compare(name, case, per, l2, dtype, device):
    tensors, geometry = inputs(case, per, dtype)
    wanted, gradients, upstream = plain(tensors, geometry, l2)
    tensors, upstream = ([x.detach().to(device) for x in each] for each in (tensors, upstream))
    flags = *geometry, l2, 1e-12
    found = [*cuda.forward(*tensors, *flags), *cuda.backward(*upstream, *tensors, *flags)]
    for a, b in zip(found, [*wanted, *gradients], strict=True):
        far = distance(a.cpu(), b)
        assert far < (1e-11 if dtype == torch.float64 else 1e-4), f"{name}, {per} in {dtype}: off by {far}"


if __name__ == "__main__":
    held = Held()
    device = sys.argv[1] if sys.argv[1:] else "cpu"
    cases = {"": SMALL, "in tiles": MANY} if device == "cpu" else {"": CASES | SMALL | LARGE}
    for how, some in cases.items():
        if how:
            window_tiles.WIDE, window_tiles.PROGRAMS = 8, 4
        for name, case in some.items():
            for per, l2 in (("one", True), ("pair", True), ("child", False)):
                held(f"{name}, {per} in float64 {how}", compare, name, case, per, l2, torch.float64, device)
                if device != "cpu" or (name, per) == ("conv-vector", "one"):
                    held(f"{name}, {per} in float32 {how}", compare, name, case, per, l2, torch.float32, device)
    held.end()
