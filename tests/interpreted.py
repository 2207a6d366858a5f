"""The CUDA homes of the fused steps on CPU tensors, by Triton's interpreter (see `conftest`)."""

import contextlib
import os
import sys
from importlib import import_module
from importlib.util import find_spec
from unittest import mock

import pytest

HOMES = ("dynamic", "em", "fm", "fm_windows", "inverted_attention")
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
missing = "Triton is not installed" if find_spec("triton") is None else "Triton's interpreter is off: there is a GPU"
needs_interpreter = pytest.mark.skipif(
    find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1", reason=missing
)


def without_launches():
    """Within it no kernel runs, and what a home gives is memory as it was: of the right shape, or not."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    stack = contextlib.ExitStack()
    for kind in (InterpretedFunction, JITFunction):
        stack.enter_context(mock.patch.object(kind, "run", lambda *args, **kwargs: None))
    return stack


@contextlib.contextmanager
def interpreted(elements=32, programs=4):
    """The operations take their CUDA homes for CPU tensors: modules by routing. Small tiles, so there are several."""
    with contextlib.ExitStack() as stack:
        homes = {name: import_module(f"torchcaps.kernels.{name}.cuda") for name in HOMES}
        for name, module in list(sys.modules.items()):
            if name.startswith("torchcaps.kernels."):
                for size, value in (("ELEMENTS", elements), ("PROGRAMS", programs)):
                    if hasattr(module, size):
                        stack.enter_context(mock.patch.object(module, size, value))
        for name, home in homes.items():
            op = import_module(f"torchcaps.kernels.{name}.op")
            stack.enter_context(mock.patch.object(op, "_home", lambda x, home=home: home))
        yield homes
