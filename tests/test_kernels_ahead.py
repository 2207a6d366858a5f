"""Every Triton kernel compiled for the GPUs that there are, by `ahead.py`: within their limits, and hardly spilling."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from interpreted import needs_triton

SCRIPT = Path(__file__).parent / "ahead.py"
SHARED = {75: 64, 80: 163, 86: 99, 90: 227, 100: 227, 120: 99}  # KiB of a block, at most
REGISTERS = 65536  # of a processor
SPILLED = 64  # bytes of a thread, at most
PROCESSORS = 132  # of an H100: fewer programs than that leave some of them idle


def compiled(request, *arguments):
    """The launches that `ahead.py` shows; what it compiled before is kept with what pytest keeps."""
    kept = {"TRITON_CACHE_DIR": str(request.config.cache.mkdir("triton")), "TRITON_INTERPRET": "0"}
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, env=os.environ | kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check(launches):
    for each in launches:
        assert each["shared"] <= SHARED[each["arch"]] * 1024, each
        assert each["registers"] * 32 * each["warps"] <= REGISTERS, each
        assert each["stack"] <= SPILLED, each
        assert math.prod(each["grid"]) > 0 and each["fusion"] is True, each
        if "classes" in each["case"]:
            assert math.prod(each["grid"]) >= PROCESSORS, each
        if "classes" in each["case"]:
            assert each["registers"] < 255, each


@needs_triton
def test_every_kernel_compiles(request):
    launches = compiled(request, "--arch", "90", "--quick")
    assert len({each["kernel"] for each in launches}) == 17
    check(launches)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("arch", SHARED)
def test_every_size_compiles(request, arch):
    launches = compiled(request, "--arch", str(arch))
    assert {each["arch"] for each in launches} == {arch}
    check(launches)
