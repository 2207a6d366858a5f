"""The Triton kernels of EM beside the plain form: `python tests/interpreted_em.py cuda`.

Without a GPU a few small sizes run in Triton's interpreter: TRITON_INTERPRET=1 and no argument, or `few`, for a size
without tiles and one with them.
"""

import sys

import em_cases
import torch
from held import Held, types
from inverted_attention_cases import CASES, distance

from torchcaps.kernels import window_tiles
from torchcaps.kernels.em import cuda, op

SMALL = {  # as `CASES`: padding and stride, several children and parents, rows and columns that differ
    "padded": (2, 2, 3, 1, 2, 2, 2, 2, 3, 2, 1),
    "vector": (1, 2, 3, 2, 1, 2, 3, 3, 2, 1, 0),
    "linear": (3, 1, 1, 3, 2, 1, 2, 3, 1, 1, 0),
}
MANY = {"many": (1, 1, 1, 2, 1, 2, 1, 9, 1, 1, 0)}  # parents in tiles, the last of which is not full
LARGE = {"linear-1000": (33, 1, 1, 37, 4, 4, 4, 1000, 1, 1, 0)}
QUICK = ("conv-padded", "linear-1000", "linear-matrix")  # of a GPU's: half a minute

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-4}  # where clusters are single votes, gradients have four digits


WAYS = [("em", "window", True), *((rule, scope, False) for rule in em_cases.RULES for scope in ("window", "image"))]


def compare(name, case, dtype, device, ways=WAYS):
    for rule, scope, first in ways:  # `first`: there is no state
        plain = em_cases.make(case, torch.float64, scope, first, rule=rule)
        tensors = [x.detach().to(device, dtype).requires_grad_() for x in plain.tensors]
        wanted, gradients = em_cases.both(plain, fused=False)
        found, own = em_cases.both(plain._replace(tensors=tensors, routing=plain.routing.to(device, dtype)))
        for a, b in zip((*found, *own), (*wanted, *gradients), strict=True):
            far = distance(a.cpu(), b)
            assert far < TOLERANCE[dtype], f"{name}, {rule}, {scope}, {dtype}: off by {far}"


def compare_large(name, case, device):
    """Where poses are so large that squares of variances would be no numbers of float32."""
    for scope in ("window", "image"):
        plain = em_cases.make(case, torch.float32, scope)
        poses, weight, activations, mean, variance, logit = (x.detach() for x in plain.tensors)
        given = 1e11 * poses, weight, activations, 1e11 * mean, 1e22 * variance, logit
        wanted, gradients = em_cases.both(plain._replace(tensors=[x.requires_grad_() for x in given]), fused=False)
        tensors = [x.detach().to(device).requires_grad_() for x in given]
        found, own = em_cases.both(plain._replace(tensors=tensors, routing=plain.routing.to(device)))
        for a, b in zip((*found, *own), (*wanted, *gradients), strict=True):
            far = distance(a.cpu(), b)
            assert far < TOLERANCE[torch.float32], f"{name}, {scope}, large: off by {far}"


def comparisons(quick):
    """What there is to compare on a GPU, where each case has its kernels compiled."""
    for dtype in types(quick):
        for name in QUICK if quick else CASES | LARGE:
            yield f"{name} in {dtype}", compare, name, (CASES | LARGE)[name], dtype
    for name in () if quick else SMALL:
        yield f"{name}, large poses", compare_large, name, SMALL[name]


if __name__ == "__main__":
    held = Held()
    few = sys.argv[1:] == ["few"]
    device = sys.argv[1] if sys.argv[1:] and not few else "cpu"
    if device != "cpu":
        for what in comparisons("quick" in sys.argv):
            held(*what, device)
        held.end()
        sys.exit()
    if few:
        SMALL = {"vector": SMALL["vector"]}
    op._home = lambda x: cuda
    cuda.ELEMENTS, cuda.PROGRAMS = 32, 4  # several tiles and runs at small sizes
    for name, case in SMALL.items():
        held(f"{name} in float64", compare, name, case, torch.float64, device)
        if name == "linear":
            held(f"{name} in float32", compare, name, case, torch.float32, device)
        if not few:
            held(f"{name}, large poses", compare_large, name, case, device)
    window_tiles.WIDE = 8
    for name, case in MANY.items():
        held(f"{name} in tiles", compare, name, case, torch.float64, device, WAYS[2:4] if few else WAYS)
    held.end()
