"""Numbers too small for a whole mantissa: a run flushes them, and weights are read without them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import tiny_config
from torch import nn

from torchcaps.denormals import SMALLEST, drop_denormals
from torchcaps.models import create_model
from torchcaps.train import Callback, fit
from torchcaps.train.devices import settled
from torchcaps.train.opened import load_run

CPU = torch.device("cpu")


def flushed() -> float:
    """Which part of half the smallest normal numbers is 0, made by all of torch's threads."""
    return ((torch.full((4_000_000,), SMALLEST) / 2) == 0).float().mean().item()


@pytest.fixture(autouse=True)
def on_two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    flushed()  # makes the threads, which have a mode each
    yield
    torch.set_num_threads(before)


def test_a_run_flushes_them_in_every_thread_and_leaves_all_as_it_was() -> None:
    for _ in range(2):
        with settled(CPU):
            assert flushed() == 1
            with settled(CPU):
                pass
            assert flushed() == 1
        assert flushed() == 0
    with pytest.raises(ZeroDivisionError), settled(CPU):
        raise ZeroDivisionError
    assert flushed() == 0


def test_training_has_none(tmp_path: Path) -> None:
    class Seen(Callback):
        def on_step(self, step: int, loss: float, accuracy: float) -> None:
            found.append(flushed())

    found: list[float] = []
    fit(tiny_config(tmp_path, epochs=1), callbacks=[Seen()])
    assert set(found) == {1} and flushed() == 0


def test_weights_are_read_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than half of EncapNet's trained weights had been left to decay, and an image took sixteen times as long."""
    network = create_model("encapnet-cifar10", pretrained=True)
    below = [((each != 0) & (each.abs() < SMALLEST)).sum().item() for each in network.parameters()]
    assert sum(below) == 0
    run = fit(tiny_config(tmp_path, epochs=1)).folder

    def load_small(_: Path, model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.data.fill_(SMALLEST / 2)

    monkeypatch.setattr("torchcaps.train.opened.load_weights", load_small)
    model, _ = load_run(run)
    assert all((each == 0).all() for each in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_a_type_can_say_apart_stays(dtype: torch.dtype) -> None:
    model = nn.Linear(4, 1, bias=False).to(dtype)
    model.register_buffer("count", torch.tensor(3))
    least = torch.finfo(dtype).tiny
    model.weight.data = torch.tensor([[1.0, -least, 6e-8, 1e-39]], dtype=dtype)
    drop_denormals(model)
    kept = dtype == torch.float64
    assert ((model.weight != 0) == torch.tensor([[True, True, True, kept]])).all() and model.count == 3
