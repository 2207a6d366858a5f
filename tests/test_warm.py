"""Kernels are compiled once, can be compiled ahead, and who waits at a terminal is told."""

import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from torchcaps import cli
from torchcaps.layers.warm import warm

pytest.importorskip("numba")

COUNT = """
import sys
from numba.core import event

compiled = []


class Listener(event.Listener):
    def on_start(self, happened):
        compiled.append(happened.data["dispatcher"].py_func.__module__)

    def on_end(self, happened):
        pass


event.register("numba:compile", Listener())
import torch
from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, CapsuleStack, LinearTransform
from torchcaps.layers.warm import warm

if sys.argv[1] == "warm":
    warm("dynamic")
else:
    stack = CapsuleStack([CapsuleLayer(LinearTransform(40, 7, 8, 16), "dynamic", implementation="fused")])
    stack(Capsules(torch.randn(33, 40, 8, requires_grad=True)))[-1].capsules.poses.sum().backward()
    with torch.no_grad():
        stack(Capsules(torch.randn(1, 40, 8)))
print(sum(name.startswith("torchcaps.") for name in compiled))
"""


@pytest.mark.slow
def test_what_was_compiled_ahead_is_not_compiled_again(tmp_path):
    """By another process, for a layer of other sizes."""

    def count(what: str) -> int:
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", COUNT, what], capture_output=True, text=True, check=True, env=environment
        )
        return int(done.stdout)

    assert count("warm") > 10
    assert count("layer") == 0


def test_a_routing_without_kernels_takes_no_time_and_is_refused_by_the_command(capsys):
    assert warm("uniform") == {}
    assert cli.main(["warm", "uniform"]) == 2
    assert "no routing that is called uniform has kernels here; routings are discriminative" in capsys.readouterr().err


@pytest.mark.parametrize(("terminal", "module", "said"), [(True, "lanes", 1), (False, "lanes", 0), (True, "", 0)])
def test_compiling_is_said_once_where_somebody_looks(monkeypatch, caplog, terminal, module, said):
    from torchcaps.kernels.simd import _Compilation

    def function():
        pass

    function.__module__ = f"torchcaps.kernels.{module}" if module else "somebody.else"
    happened = SimpleNamespace(data={"dispatcher": SimpleNamespace(py_func=function)})
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: terminal, write=lambda text: None))
    compilation = _Compilation()
    with caplog.at_level(logging.WARNING, "torchcaps"):
        for _ in range(2):
            compilation.on_start(happened)
            compilation.on_end(happened)
    assert [record.getMessage().startswith("torchcaps: compiling kernels") for record in caplog.records] == [
        True
    ] * said


@pytest.mark.parametrize(
    ("module", "asked", "level"),
    [("torchcaps.kernels.lanes", "", 2), ("torchcaps.kernels.lanes", "3", 3), ("somebody.else", "", 3)],
)
def test_kernels_alone_are_compiled_at_the_second_level(monkeypatch, module, asked, level):
    """One that is asked for stands, and after each compilation, also of one inside another, all is as before."""
    from torchcaps.kernels.simd import _Compilation
    from torchcaps.kernels.simd import options as config

    def function():
        pass

    function.__module__ = module
    monkeypatch.setenv("NUMBA_OPT", asked) if asked else monkeypatch.delenv("NUMBA_OPT", raising=False)
    before, vectorized = config.OPT, config.LOOP_VECTORIZE
    assert before == 3
    happened = SimpleNamespace(data={"dispatcher": SimpleNamespace(py_func=function)})
    compilation = _Compilation()
    for _ in range(2):
        compilation.on_start(happened)
        assert level == config.OPT
    for _ in range(2):
        compilation.on_end(happened)
    assert (before, vectorized) == (config.OPT, config.LOOP_VECTORIZE)
