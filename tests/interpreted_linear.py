"""The Triton kernels of dynamic routing and FM beside the plain forms: `python tests/interpreted_linear.py cuda`.

Without a GPU a few small sizes run in Triton's interpreter: TRITON_INTERPRET=1 and no argument.
"""

import sys
from functools import partial

import torch
from held import Held, types
from inverted_attention_cases import in_eighths

import torchcaps.kernels.dynamic.cuda as dynamic_cuda
import torchcaps.kernels.fm.cuda as fm_cuda
from torchcaps.capsules import Capsules
from torchcaps.kernels import tiles, window_tiles
from torchcaps.kernels.dynamic.plain import plain as dynamic_plain
from torchcaps.kernels.fm import plain as fm_plain
from torchcaps.votes.binary import binary_children, binary_weight

SMALL = [(3, 3, 2, 2, 3, 2), (1, 2, 1, 3, 1, 2)]  # b, i, rows, columns, j, m
MANY = (1, 2, 1, 2, 9, 2)  # parents in tiles, the last of which is not full
LARGE = [*SMALL, (128, 1152, 1, 8, 10, 16), (33, 37, 3, 3, 7, 5), (17, 64, 4, 4, 32, 4), (5, 19, 1, 8, 1000, 16)]
QUICK = [(128, 1152, 1, 8, 10, 16), (5, 19, 1, 8, 1000, 16)]  # of a GPU's: half a minute
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}


def equal(name, found, wanted, dtype):
    """To within the rounding of `dtype`, by the largest number of each; `wanted` is in float64, on the CPU."""
    for a, e in zip(found, wanted, strict=True):
        assert (a is None) == (e is None), name
        if e is not None:
            far = ((a.cpu().double() - e).abs().max() / e.abs().max().clamp_min(1e-30)).item()
            assert far <= TOLERANCE[dtype], f"{name}, {tuple(e.shape)} in {dtype}: off by {far}"


def exact(function, inputs, upstream):
    """What a plain form gives in float64, and its gradients for the tensors among `inputs`; None for what is none."""
    leaves = [x.double().requires_grad_() if isinstance(x, torch.Tensor) else x for x in inputs]
    outs = function(*leaves)
    outs = [outs] if isinstance(outs, torch.Tensor) else list(outs)
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    given = [x.double() for x in upstream]
    found = iter(torch.autograd.grad(outs, tensors, given, allow_unused=True))
    gradients = [next(found) if isinstance(x, torch.Tensor) else None for x in leaves]
    return [x.detach() for x in outs], gradients


def on(device, inputs):
    return [x.to(device) if isinstance(x, torch.Tensor) else x for x in inputs]


HOWS = ("uniform", "xnor", "last", "binary")  # of a step of dynamic routing
FLAGS = {"xnor": (True, False, False), "last": (False, False, True), "binary": (True, True, False)}


def dynamic(b, i, r, c, j, m, dtype, device, how):
    def draw(*shape):
        return torch.randn(shape, dtype=dtype)

    poses, weight, gradient = draw(b, i, r * c), draw(j, i, c, m), draw(b, j, r * m)
    state, initial = (None, None) if how == "uniform" else (draw(b, j, r * m), draw(i, j))
    xnor, cancel, last = FLAGS.get(how, (False, False, False))
    if how == "xnor":
        poses, weight = in_eighths(poses), in_eighths(weight)
    if how == "binary":
        poses, weight = binary_children(Capsules(poses), r).poses, binary_weight(weight)
    inputs, flags = [poses, weight, state, initial], (xnor, cancel)
    wanted, gradients = exact(dynamic_plain, [*inputs, *flags, last], [gradient])
    inputs = on(device, inputs)
    equal("dynamic", [dynamic_cuda.forward(*inputs, *flags)], wanted, dtype)
    found = dynamic_cuda.backward(gradient.to(device), *inputs, *flags, last)
    for a, e, name in zip(found, gradients, ("poses", "weight", "state", "initial"), strict=False):
        if e is not None:
            equal(f"dynamic, gradient of {name}", [a], [e], dtype)


def fm(b, i, r, c, j, m, dtype, device, how):
    def draw(*shape):
        return torch.randn(shape, dtype=dtype)

    poses, weight = draw(b, i, r * c), draw(j, i, c, m)
    if how == "moments":
        upstream, inputs = [draw(i, j, r * m), draw(i, j, r * m)], [poses, weight]
        wanted, gradients = exact(fm_plain.moments, inputs, upstream)
        equal("moments", fm_cuda.moments(*on(device, inputs)), wanted, dtype)
        equal("moments, backward", fm_cuda.moments_backward(*on(device, upstream + inputs)), gradients, dtype)
        return
    upstream = [draw(b, j, r * m), draw(b, j, r * m)]
    children, parents, l2 = (1, 1, True) if how == "one" else (i, j, False)
    inputs = [poses, weight, draw(children, parents, r * m), draw(children, parents, r * m)]
    wanted, gradients = exact(fm_plain.sums, [*inputs, l2, 1e-12], upstream)
    inputs = on(device, inputs)
    equal("fm", fm_cuda.forward(*inputs, l2, 1e-12), wanted, dtype)
    equal("fm, backward", fm_cuda.backward(*on(device, upstream), *inputs, l2, 1e-12), gradients[:4], dtype)


WAYS = [*((dynamic, how) for how in HOWS), *((fm, how) for how in ("one", "pair", "moments"))]


def comparisons(quick):
    """What there is to compare on a GPU, where each size has its kernels compiled."""
    for dtype in types(quick):
        for size in QUICK if quick else LARGE:
            for compare, how in WAYS:
                yield f"{compare.__name__}, {how}, of {size} in {dtype}", partial(compare, how=how), *size, dtype


if __name__ == "__main__":
    torch.manual_seed(0)
    held = Held()
    device = sys.argv[1] if sys.argv[1:] else "cpu"
    if device != "cpu":
        for what in comparisons("quick" in sys.argv):
            held(*what, device)
        held.end()
        sys.exit()
    tiles.ELEMENTS, tiles.PROGRAMS = 32, 4  # several tiles and runs at small sizes
    for size in SMALL:
        for dtype in (torch.float64, torch.float32) if size == SMALL[1] else (torch.float64,):
            for compare, how in WAYS:
                held(f"{compare.__name__}, {how}, of {size} in {dtype}", compare, *size, dtype, device, how)
    window_tiles.WIDE = 16
    for compare, how in WAYS:
        held(f"{compare.__name__}, {how}, of {MANY} in tiles", compare, *MANY, torch.float64, device, how)
    held.end()
