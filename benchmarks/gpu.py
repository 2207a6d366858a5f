"""The runs that need a GPU: `python benchmarks/gpu.py all --minutes 8`, or one by its name; without one, what there is.

`all` needs torch, Triton, numpy and safetensors only (`gpu_all.py`). They run from the source tree, whether or not the
package is installed. See GPU.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
TRAINED = {  # in order of worth
    "train-attention": "inverted-attention/table1/attention-resnet-cifar10-r2",
    "train-fm": "fm/table2/ours-cifar10",
    "train-xnidr": "xnodr/table4/mobilenet-xnidr-plain-cifar10",
    "train-encapnet": "encapnet/table3/skip-both",
    "train-multimnist": "fm/text-multimnist/test",
}
RUNS = {
    "all": ("benchmarks/gpu_all.py",),
    "test-attention": ("tests/interpreted_inverted_attention.py", "cuda"),
    "test-em": ("tests/interpreted_em.py", "cuda"),
    "test-fm-windows": ("tests/interpreted_fm_windows.py", "cuda"),
    "test-linear": ("tests/interpreted_linear.py", "cuda"),
    "test-devices": ("-m", "pytest", "-q", "tests/test_on_device.py", "-m", "device"),
    "kernels": ("benchmarks/kernels.py", "--device", "cuda", "--repeats", "21"),
    "routings": ("benchmarks/routing.py", "--device", "cuda", "--repeats", "21"),
    **{name: ("benchmarks/cell.py", cell, "--device", "cuda") for name, cell in TRAINED.items()},
}


def main(arguments: list[str]) -> int:
    name, *options = arguments or [""]
    if name not in RUNS or (options and name != "all"):
        print("\n".join(f"{name:16} {' '.join(command)}" for name, command in RUNS.items()))
        return 2
    if name != "all" and not torch.cuda.is_available():
        print(f"torch {torch.__version__} finds no GPU", file=sys.stderr)
        return 1
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    os.chdir(ROOT)
    command = [sys.executable, *RUNS[name], *options]
    if os.name == "nt":  # where execve quotes nothing, and this process would end before the other
        return subprocess.run(command, env=environment).returncode
    os.execve(sys.executable, command, environment)  # which signals reach


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
