"""The Triton kernels beside the plain form: `python tests/interpreted_inverted_attention.py cuda`.

Without a GPU a few small sizes run in Triton's interpreter: TRITON_INTERPRET=1 and no argument.
"""

import sys

import torch
from held import Held, types
from inverted_attention_cases import CASES, FLAGS, distance, in_eighths, inputs, plain

from torchcaps.kernels import window_tiles
from torchcaps.kernels.inverted_attention import cuda

SMALL = {name: CASES[name] for name in ("conv-padded", "conv-vector", "linear-matrix", "ones")}
MANY = {  # parents in tiles, the last of which is not full, and children in runs
    "linear-many": (2, 1, 1, 3, 2, 1, 1, 9, 1, 1, 0),
    "conv-many": (1, 2, 3, 1, 1, 2, 1, 9, 2, 1, 0),
}
SIGNS = ("conv-padded", "conv-vector", "conv-many")  # of those, the ones whose signs are compared too
LARGE = {"linear-1000": (33, 1, 1, 37, 4, 4, 4, 1000, 1, 1, 0), "conv-300": (2, 5, 7, 3, 3, 3, 5, 300, 3, 2, 1)}
QUICK = ("conv-padded", "linear-1000", "linear-matrix")  # of a GPU's: half a minute


def compare(name, case, how, dtype, device):
    flags = FLAGS[how]
    tensors, geometry = inputs(case, dtype, binary=flags[1])
    if how == "xnor":
        tensors[:2] = (in_eighths(x.detach()).requires_grad_() for x in tensors[:2])
    wanted, gradients, upstream = plain(tensors, geometry, *flags)
    upstream, *tensors = (x.detach().to(device) for x in (upstream, *tensors))
    found = [cuda.forward(*tensors, *geometry, *flags), *cuda.backward(upstream, *tensors, *geometry, *flags)]
    for a, b in zip(found, [wanted, *gradients], strict=True):
        far = distance(a.cpu(), b)
        assert far < (1e-12 if dtype == torch.float64 else 1e-5), f"{name} by {how} in {dtype}: off by {far}"


def comparisons(quick):
    """What there is to compare on a GPU, where each case has its kernels compiled."""
    for dtype in types(quick):
        for name in QUICK if quick else CASES | LARGE:
            for how in FLAGS:
                yield f"{name} by {how} in {dtype}", compare, name, (CASES | LARGE)[name], how, dtype


if __name__ == "__main__":
    held = Held()
    few = sys.argv[1:] == ["few"]  # a size without tiles and one with them
    device = sys.argv[1] if sys.argv[1:] and not few else "cpu"
    if device != "cpu":
        for what in comparisons("quick" in sys.argv):
            held(*what, device)
        held.end()
        sys.exit()
    if few:
        SMALL, MANY = ({name: some[name]} for some, name in ((SMALL, "conv-vector"), (MANY, "linear-many")))
    for tiles, some in {"": SMALL, "in tiles": MANY}.items():
        if tiles:
            window_tiles.WIDE, window_tiles.PROGRAMS = 8, 4
        for name, case in some.items():
            for how in FLAGS if name in SIGNS else ("dot",):
                held(f"{name} by {how} in float64 {tiles}", compare, name, case, how, torch.float64, device)
                if name == "conv-vector" and not few:
                    held(f"{name} by {how} in float32 {tiles}", compare, name, case, how, torch.float32, device)
    held.end()
