"""The Triton kernels of FM on windows beside the plain form: `python tests/interpreted_fm_windows.py cuda`.

Without a GPU a few small sizes run in Triton's interpreter: TRITON_INTERPRET=1 and no argument.
"""

import sys

import torch
from fm_windows_cases import CASES, inputs, plain
from held import Held, types
from inverted_attention_cases import distance

from torchcaps.kernels import window_tiles
from torchcaps.kernels.fm_windows import cuda

SMALL = {"conv-small": (2, 3, 3, 1, 2, 2, 2, 2, 2, 2, 1), "conv-vector": CASES["conv-vector"]}
MANY = {"conv-many": (1, 2, 3, 1, 1, 2, 2, 5, 2, 1, 0)}  # parents in tiles, the last not full, and children in runs
LARGE = {"conv-300": (2, 5, 7, 3, 3, 3, 5, 300, 3, 2, 1)}
QUICK = ("conv-small", "conv-300")  # of a GPU's: half a minute


def compare(name, case, per, l2, dtype, device):
    tensors, geometry = inputs(case, per, dtype)
    wanted, gradients, upstream = plain(tensors, geometry, l2)
    tensors, upstream = ([x.detach().to(device) for x in each] for each in (tensors, upstream))
    flags = *geometry, l2, 1e-12
    found = [*cuda.forward(*tensors, *flags), *cuda.backward(*upstream, *tensors, *flags)]
    for a, b in zip(found, [*wanted, *gradients], strict=True):
        far = distance(a.cpu(), b)
        assert far < (1e-11 if dtype == torch.float64 else 1e-4), f"{name}, {per} in {dtype}: off by {far}"


WAYS = (("one", True), ("pair", True), ("child", False))  # how many parents' sums there are, and by which norm


def comparisons(quick):
    """What there is to compare on a GPU, where each case has its kernels compiled."""
    for dtype in types(quick):
        for name in QUICK if quick else CASES | SMALL | LARGE:
            for per, l2 in WAYS:
                yield f"{name}, {per} in {dtype}", compare, name, (CASES | SMALL | LARGE)[name], per, l2, dtype


if __name__ == "__main__":
    held = Held()
    device = sys.argv[1] if sys.argv[1:] else "cpu"
    if device != "cpu":
        for what in comparisons("quick" in sys.argv):
            held(*what, device)
        held.end()
        sys.exit()
    for how, some in {"": SMALL, "in tiles": MANY}.items():
        if how:
            window_tiles.WIDE, window_tiles.PROGRAMS = 8, 4
        for name, case in some.items():
            for per, l2 in WAYS:
                held(f"{name}, {per} in float64 {how}", compare, name, case, per, l2, torch.float64, device)
                if (name, per) == ("conv-vector", "one"):
                    held(f"{name}, {per} in float32 {how}", compare, name, case, per, l2, torch.float32, device)
    held.end()
