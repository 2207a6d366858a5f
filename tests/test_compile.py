"""Compiled training: the same run as without, in a folder that either continues."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_config

from torchcaps.config import CoefficientConfig, Config, LossConfig, ModelConfig, OptimiserConfig
from torchcaps.train import compiling, fit, load_run, loop
from torchcaps.train.run import RunFolder

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
CAPSNET = ModelConfig("capsnet", {"channels": 16, "primary": 4, "kernel": 3, "decoder": True})


def capsnet(out: Path, **changes) -> Config:
    """A small CapsNet with its decoder, and a loss that changes with the progress of the run."""
    loss = LossConfig("spread", reconstruction=0.0005)
    return tiny_config(out, **({"model": CAPSNET, "loss": loss} | changes))


def curve(folder: Path) -> list[list[float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [[line[name] for name in ("train_loss", "validation_loss", "train_accuracy")] for line in lines]


@pytest.mark.slow
@needs_compiler
def test_compiled_run_equals_one_that_is_not(tmp_path: Path) -> None:
    plain = fit(capsnet(tmp_path / "plain"))
    compiled = fit(capsnet(tmp_path / "compiled", compile=True))
    assert RunFolder(compiled.folder).read("environment.json")["compiled"] is True
    assert RunFolder(plain.folder).read("environment.json")["compiled"] is False
    torch.testing.assert_close(curve(compiled.folder), curve(plain.folder), rtol=1e-3, atol=5e-3)
    weights, expected = (load_file(each.folder / "last" / "model.safetensors") for each in (compiled, plain))
    assert list(weights) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-2, atol=2e-3, msg=name)
    load_run(compiled.folder)


@pytest.mark.slow
@needs_compiler
def test_compiled_routing_by_the_votes_of_the_weight_step(tmp_path: Path) -> None:
    """The gradient of a later phase is taken inside what is compiled."""
    changes = {"coefficients": CoefficientConfig(lr=0.1, reuse_votes=True), "optimiser": OptimiserConfig("sgd", lr=0.1)}
    plain, compiled = (fit(tiny_config(tmp_path / str(on), compile=on, **changes)).folder for on in (False, True))
    torch.testing.assert_close(curve(compiled), curve(plain), rtol=1e-3, atol=5e-3)


@pytest.mark.slow
@needs_compiler
def test_cut_compiled_run_ends_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit(capsnet(tmp_path / "whole", compile=True))
    config, step = capsnet(tmp_path / "cut", compile=True, checkpoint_every=0.0), loop.Trainer.step

    def cut(self: loop.Trainer, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if (self.position.epoch, self.position.step) == (1, 2):
            raise RuntimeError("cut")
        return step(self, images, labels)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "step", cut)
        with pytest.raises(RuntimeError, match="cut"):
            fit(config)
    assert curve(fit(config, resume=True).folder) == curve(whole.folder)


@pytest.mark.slow
@needs_compiler
def test_layer_of_the_first_bad_number_is_named(tmp_path: Path) -> None:
    """The steps that are watched run as they are written, since compiled code would call no hooks."""
    # no sigmoid, which makes 1 of infinity
    config = capsnet(tmp_path, compile=True, optimiser=OptimiserConfig("sgd", lr=1e38))
    with pytest.raises(FloatingPointError, match=r"first in the (output|gradient)"):
        fit(config)


def test_machine_that_cannot_compile_says_so_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("\nNo working C++ compiler found\nin any of many places")

    monkeypatch.setattr(compiling, "_doubled", fail)
    with caplog.at_level(logging.WARNING, "torchcaps"):
        asked = fit(tiny_config(tmp_path / "asked", compile=True, epochs=1))
    (line,) = [record.getMessage() for record in caplog.records if "compile" in record.getMessage()]
    assert "\n" not in line and "No working C++ compiler found; not compiled" in line
    assert RunFolder(asked.folder).read("environment.json")["compiled"] is False
    plain = fit(tiny_config(tmp_path / "plain", epochs=1))
    assert curve(asked.folder) == curve(plain.folder)
