"""The Triton kernels compiled for GPUs on a machine that has none: `python tests/ahead.py --arch 90 --quick`.

The launchers of `kernels/*/cuda.py` run on meta tensors under a stub of Triton's driver, so that signatures, constants,
tiles and warps are those that a GPU would see. Each launch becomes a line of JSON: its grid, its registers, and bytes
of stack (what it spills) and of shared memory, as cuobjdump reads them in the machine code. Without TRITON_INTERPRET.
"""

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from torchcaps.kernels.dynamic import cuda as dynamic_cuda
from torchcaps.kernels.em import cuda as em_cuda
from torchcaps.kernels.em.op import Geometry, Inputs
from torchcaps.kernels.em.sums import Result
from torchcaps.kernels.fm import cuda as fm_cuda
from torchcaps.kernels.fm_windows import cuda as fm_windows_cuda
from torchcaps.kernels.inverted_attention import cuda as attention_cuda

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Stub:
    """Triton's driver without a device: as many of them as there are targets, and no launch."""

    def __init__(self):
        self.targets = []

    def use(self, target):
        self.targets = [*(each for each in self.targets if each != target), target]

    def get_current_device(self):
        return self.targets[-1].arch

    def get_current_target(self):
        return self.targets[-1]

    def get_current_stream(self, device):
        return 0

    def is_active(self):
        return True

    def get_active_torch_device(self):
        return torch.device("meta")


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def dynamic(b, i, r, c, m, j, xnor=False, binary=False, last=False, initial=False, dtype=torch.float32):
    x, w, s = meta(b, i, r * c, dtype=dtype), meta(j, i, c, m, dtype=dtype), meta(b, j, r * m, dtype=dtype)
    start = meta(i, j, dtype=dtype) if initial else None
    dynamic_cuda.forward(x, w, s, start, xnor, binary)
    dynamic_cuda.backward(s, x, w, s, start, xnor, binary, last)


def fm(b, i, r, c, m, j, l2=True, each=False):
    x, w, g = meta(b, i, r * c), meta(j, i, c, m), meta(b, j, r * m)
    a = meta(i, j, r * m) if each else meta(1, 1, r * m)
    fm_cuda.forward(x, w, a, a, l2, 1e-12)
    fm_cuda.backward(g, g, x, w, a, a, l2, 1e-12)


def windows(b, h, w, n, r, c, m, j, k, s, p, dtype):
    """Children, weights and parents of windows, and their geometry."""
    places = ((h + 2 * p - k) // s + 1) * ((w + 2 * p - k) // s + 1)
    return meta(b, h, w, n, r * c, dtype=dtype), meta(j, k, k, n, c, m), meta(b, places, j, r * m), (r, s, p)


def attention(*sizes, dtype=torch.float32, xnor=False, binary=False):
    """bfloat16 is of the children, as autocast has them."""
    x, w, q, geometry = windows(*sizes, dtype)
    attention_cuda.forward(x, w, q, *geometry, xnor, binary)
    attention_cuda.backward(q, x, w, q, *geometry, xnor, binary)


def fm_windows(*sizes, l2=True, each=False):
    x, w, g, geometry = windows(*sizes, torch.float32)
    pairs = (x.shape[3] * w.shape[1] * w.shape[2], w.shape[0]) if each else (1, 1)
    a = meta(*pairs, g.shape[3])
    fm_windows_cuda.forward(x, w, a, a, *geometry, l2, 1e-12)
    fm_windows_cuda.backward(g, g, x, w, a, a, *geometry, l2, 1e-12)


def em(*sizes, whole=False, dot=False, first=False):
    x, w, mu, geometry = windows(*sizes, torch.float32)
    a, prior = meta(*x.shape[:-1]), meta(*mu.shape[:-1])
    given = Inputs(x, w, a, *((None,) * 3 if first else (mu, None if dot else mu, prior)))
    *_, seen = em_cuda.forward(given, Geometry(*geometry, whole, dot))
    em_cuda.backward(Result(mu, mu, mu, prior.unsqueeze(-1)), given, seen, Geometry(*geometry, whole, dot))


QUICK = {  # a case for each kernel
    "dynamic, capsnet": (dynamic, (128, 1152, 1, 8, 16, 10), {"initial": True}),
    "dynamic, 1000 classes": (dynamic, (128, 1152, 1, 8, 16, 1000), {}),
    "xnidr, mobilenet": (dynamic, (128, 160, 1, 8, 16, 10), {"xnor": True, "binary": True}),
    "fm, resnet": (fm, (128, 64, 4, 4, 4, 32), {}),
    "fm, resnet in windows": (fm_windows, (128, 16, 16, 32, 4, 4, 4, 32, 3, 2, 0), {}),
    "attention, resnet": (attention, (128, 16, 16, 32, 4, 4, 4, 32, 3, 2, 0), {}),
    "attention, resnet, bfloat16": (attention, (128, 16, 16, 32, 4, 4, 4, 32, 3, 2, 0), {"dtype": torch.bfloat16}),
    "xnidr, resnet in windows": (attention, (128, 16, 16, 32, 4, 4, 4, 32, 3, 2, 0), {"xnor": True, "binary": True}),
    "attention, 1000 classes": (attention, (128, 1, 1, 800, 4, 4, 4, 1000, 1, 1, 0), {}),
    "em, resnet over the image": (em, (128, 16, 16, 32, 4, 4, 4, 32, 3, 2, 0), {"whole": True}),
}
SLOW = {  # the networks at batch 128, odd sizes and large ones
    "dynamic, resnet": (dynamic, (128, 2048, 1, 8, 16, 10), {}),
    "dynamic, last": (dynamic, (128, 1152, 1, 8, 16, 10), {"last": True}),
    "dynamic, float64": (dynamic, (8, 37, 1, 8, 16, 10), {"dtype": torch.float64}),
    "dynamic, odd": (dynamic, (33, 37, 1, 7, 13, 5), {"initial": True}),
    "dynamic, one of each": (dynamic, (1, 1, 1, 1, 1, 1), {}),
    "dynamic, 100 classes": (dynamic, (128, 1152, 1, 8, 16, 100), {}),
    "fm, 1000 classes": (fm, (128, 1152, 1, 8, 16, 1000), {}),
    "xnidr": (dynamic, (128, 160, 1, 8, 16, 10), {"xnor": True}),
    "fm, capsnet": (fm, (128, 1152, 1, 8, 16, 10), {}),
    "fm, odd, each": (fm, (33, 37, 3, 3, 5, 7), {"l2": False, "each": True}),
    "fm, one of each": (fm, (1, 1, 1, 1, 1, 1), {}),
    "fm, 100 classes": (fm, (128, 1152, 1, 8, 16, 100), {}),
    "fm, odd and padded, each": (fm_windows, (3, 5, 7, 3, 3, 3, 5, 17, 3, 2, 1), {"l2": False, "each": True}),
    "xnidr, odd and padded": (attention, (3, 5, 7, 3, 3, 3, 5, 17, 3, 2, 1), {"xnor": True}),
    "attention, resnet classes": (attention, (128, 1, 1, 800, 4, 4, 4, 10, 1, 1, 0), {}),
    "attention, cifar100": (attention, (128, 1, 1, 20, 6, 6, 6, 100, 1, 1, 0), {}),
    "attention, multimnist": (attention, (128, 1, 1, 576, 8, 8, 8, 10, 1, 1, 0), {}),
    "attention, odd and padded": (attention, (3, 5, 7, 3, 3, 3, 5, 17, 3, 2, 1), {}),
    "attention, odd, bfloat16": (attention, (3, 5, 7, 3, 3, 3, 5, 17, 3, 2, 1), {"dtype": torch.bfloat16}),
    "em, resnet in windows": (em, (128, 16, 16, 32, 4, 4, 4, 32, 3, 2, 0), {}),
    "em, resnet, first": (em, (128, 16, 16, 32, 4, 4, 4, 32, 3, 2, 0), {"first": True}),
    "em, resnet classes": (em, (128, 1, 1, 800, 4, 5, 4, 10, 1, 1, 0), {}),
    "em, capnet-6": (em, (128, 1, 1, 2048, 1, 17, 16, 10, 1, 1, 0), {}),
    "em, odd and padded": (em, (3, 5, 7, 3, 3, 3, 5, 17, 3, 2, 1), {"whole": True}),
    "em, 100 classes": (em, (128, 1, 1, 800, 4, 5, 4, 100, 1, 1, 0), {}),
    "em, 1000 classes": (em, (128, 1, 1, 800, 4, 5, 4, 1000, 1, 1, 0), {}),
    "em, 1000 classes, first": (em, (128, 1, 1, 800, 4, 5, 4, 1000, 1, 1, 0), {"first": True}),
    "ablation C, resnet": (em, (128, 16, 16, 32, 4, 4, 4, 32, 3, 2, 0), {"whole": True, "dot": True}),
    "ablation C, classes": (em, (128, 1, 1, 64, 4, 4, 4, 10, 1, 1, 0), {"dot": True}),
}


def resources(kernel):
    """Registers of a thread, and bytes of its stack."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        shown = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"(REG|STACK):(\d+)", shown))
    return {"registers": int(found["REG"]), "stack": int(found["STACK"])}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90])
    parser.add_argument("--quick", action="store_true", help="one case a kernel")
    flags = parser.parse_args()
    stub, launch, launches = Stub(), JITFunction.run, []

    def compile_only(self, *args, grid, warmup, **kwargs):
        launches.append((self, grid, kwargs, launch(self, *args, grid=grid, warmup=True, **kwargs)))

    driver.set_active(stub)
    JITFunction.run = compile_only
    for arch in flags.arch:
        stub.use(GPUTarget("cuda", arch, 32))
        for case, (function, sizes, options) in (QUICK if flags.quick else QUICK | SLOW).items():
            launches.clear()
            function(*sizes, **options)
            for kernel, grid, constants, compiled in launches:
                line = {"arch": arch, "case": case, "kernel": f"{kernel.fn.__module__}.{kernel.fn.__name__}"}
                line |= {"grid": list(grid), "warps": constants["num_warps"], "shared": compiled.metadata.shared}
                line |= {"fusion": constants["enable_fp_fusion"]}  # not what Triton's version has by default
                print(json.dumps(line | resources(compiled)), flush=True)


if __name__ == "__main__":
    main()
