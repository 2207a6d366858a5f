"""A number that is not finite stops the run, names step and layer where it first appeared, and keeps a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_config
from torch import Tensor

from torchcaps.config import LossConfig, ModelConfig, OptimiserConfig
from torchcaps.train import fit, loop
from torchcaps.train.anomaly import Watch, finite, tensors


def spoil_forward(output: Tensor) -> Tensor:
    return output * torch.nan


def overflow(output: Tensor) -> Tensor:
    return output * torch.inf


def spoil_backward(output: Tensor) -> Tensor:
    """The same value, of which the gradient is infinite times zero."""
    return output + (output - output.detach()).abs().sqrt()


@contextmanager
def fault(layer: str, how: Callable[[Tensor], Tensor], done: int) -> Iterator[None]:
    """`how` is applied to what `layer` returns, in the training step after `done`, however often that is made."""
    step = loop.Trainer.step

    def struck(trainer: loop.Trainer, *batch: Tensor) -> Tensor:
        module = trainer.model.get_submodule(layer)
        forward = type(module).forward
        if trainer.position.epoch * 5 + trainer.position.step == done:
            module.forward = lambda value: how(forward(module, value))
        try:
            return step(trainer, *batch)
        finally:
            module.__dict__.pop("forward", None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "step", struck)
        yield


@pytest.mark.parametrize("layer", ["conv", "dropout", "head"])
@pytest.mark.parametrize("every", [0.0, 1e6])
def test_layer_that_returns_nan_is_named(tmp_path: Path, layer: str, every: float) -> None:
    config = tiny_config(tmp_path / "runs", checkpoint_every=every)
    message = rf"^the loss is nan at step 7 \(epoch 2\); first in the output of layer '{layer}'\. The checkpoint before"
    with fault(layer, spoil_forward, 6), pytest.raises(FloatingPointError, match=message):
        fit(config)
    last = tmp_path / "runs" / "tiny-0" / "last"
    assert finite(list(load_file(last / "model.safetensors").values()))
    assert loop.load_state(last)["position"]["step"] == (1 if every == 0 else 0)
    resumed = fit(config, resume=True)
    whole = fit(tiny_config(tmp_path / "whole", checkpoint_every=every))
    ours, theirs = (load_file(each.folder / "last" / "model.safetensors") for each in (resumed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_infinite_values_are_found_where_they_begin(tmp_path: Path) -> None:
    """The scores, behind a sigmoid, are finite: only the gradient, or a product of zero and infinity, is not."""
    with fault("conv", overflow, 2), pytest.raises(FloatingPointError, match="first in the output of layer 'conv'"):
        fit(tiny_config(tmp_path))


@pytest.mark.parametrize(
    ("every", "clip", "what"),
    [
        (0.0, None, r"weights are not finite at step 7 \(epoch 2\)"),
        (1e6, None, r"the loss is nan at step 8 \(epoch 2\)"),
        (0.0, 1.0, r"weights are not finite at step 7 \(epoch 2\)"),
    ],
)
def test_gradient_that_is_nan_is_named(tmp_path: Path, every: float, clip: float | None, what: str) -> None:
    """The loss of the step is finite; clipping makes every gradient NaN, of which the first is named all the same."""
    config = tiny_config(tmp_path, checkpoint_every=every, clip=clip)
    message = rf"^{what}; first in the gradient of 'conv\.(weight|bias)'"
    with fault("conv", spoil_backward, 6), pytest.raises(FloatingPointError, match=message):
        fit(config)
    assert finite(list(load_file(tmp_path / "tiny-0" / "last" / "model.safetensors").values()))


def test_last_step_of_an_epoch_is_looked_at(tmp_path: Path) -> None:
    """Neither checkpoint nor best weights are those that the step has spoilt."""
    config = tiny_config(tmp_path, checkpoint_every=1e6)
    with (
        fault("conv", spoil_backward, 9),
        pytest.raises(FloatingPointError, match=r"weights .* at step 10 \(epoch 2\)"),
    ):
        fit(config)
    for which in ("last", "best"):
        assert finite(list(load_file(tmp_path / "tiny-0" / which / "model.safetensors").values()))


def test_update_that_overflows_is_named(tmp_path: Path) -> None:
    """`tiny` has a second phase, whose forward pass meets the weights first."""
    optimiser = OptimiserConfig("sgd", lr=3e38, momentum=0.0, weight_decay=1e4)
    with pytest.raises(FloatingPointError, match="first in the output of layer 'conv'"):
        fit(tiny_config(tmp_path / "two", optimiser=optimiser))
    plain = ModelConfig("small-resnet.linear", {"width": 4})
    with pytest.raises(FloatingPointError, match=r"first in '[\w.]+' after its update"):
        fit(tiny_config(tmp_path / "one", model=plain, loss=LossConfig("cross-entropy"), optimiser=optimiser))


def test_tensors_in_nested_outputs_are_looked_at() -> None:
    one, two = torch.ones(1), torch.full((1,), torch.inf)
    assert list(tensors({"a": (one, [two, torch.ones(1, dtype=torch.int64)]), "b": None})) == [one, two]
    assert finite([]) and finite([one]) and not finite([one, two])
    watch = Watch(torch.nn.Identity())
    with watch:
        watch.model(one)
        assert watch.found is None
        watch.model(two)
        watch.look("later", two)
    assert watch.found == "the output of the model (Identity)"
    assert not watch.model._forward_hooks
