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
    from torchcaps.kernels.simd import _Announcement

    def function():
        pass

    function.__module__ = f"torchcaps.kernels.{module}" if module else "somebody.else"
    happened = SimpleNamespace(data={"dispatcher": SimpleNamespace(py_func=function)})
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: terminal, write=lambda text: None))
    announcement = _Announcement()
    with caplog.at_level(logging.WARNING, "torchcaps"):
        announcement.on_start(happened)
        announcement.on_start(happened)
    assert [record.getMessage().startswith("torchcaps: compiling kernels") for record in caplog.records] == [
        True
    ] * said
