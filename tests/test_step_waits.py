"""A training step waits for no device: nothing is read back in it, and what it gives comes by an event of its own."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest
import torch
from tiny import tiny_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchcaps.capsules import Capsules
from torchcaps.config import AugmentConfig, LossConfig, ModelConfig
from torchcaps.data.splits import mix
from torchcaps.data.transforms import augment, draw
from torchcaps.layers import CapsuleLayer, ConvTransform, use_implementation
from torchcaps.train import devices, readback
from torchcaps.train.devices import describe_settings, settled
from torchcaps.train.loop import Trainer
from torchcaps.train.meter import Meter
from torchcaps.train.processes import build_fabric
from torchcaps.train.readback import Readback

aten = torch.ops.aten
WAITS = {  # of a GPU they need its answer, or copy from memory that is not pinned
    aten._local_scalar_dense.default,
    aten.lift_fresh.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten._unique2.default,
}


class NoWaiting(TorchDispatchMode):
    """Refuses what would wait for a GPU, also what on a CPU is no operation."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in WAITS, f"{function} waits for the device"
        return function(*args, **(kwargs or {}))

    def __enter__(self):
        self.patches = ExitStack()
        for name in ("tolist", "numpy", "cpu", "item"):
            self.patches.enter_context(mock.patch.object(torch.Tensor, name, self.refuse(name)))
        return super().__enter__()

    def __exit__(self, *error):
        self.patches.close()
        return super().__exit__(*error)

    @staticmethod
    def refuse(name):
        def waits(*_):
            raise AssertionError(f"Tensor.{name} waits for the device")

        return waits


RUNS = {
    "capsnet": (ModelConfig("capsnet", {"channels": 8, "primary": 2, "kernel": 3, "decoder": False}), "margin"),
    "phases": (ModelConfig("tiny", {}), "cross-entropy"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_step_waits_for_nothing(name, tmp_path: Path):
    model, loss = RUNS[name]
    config = tiny_config(tmp_path, model=model, loss=LossConfig(loss), clip=1.0, average=0.9)
    trainer = Trainer(build_fabric(config), config, False)
    use_implementation(trainer.model, "plain")  # kernels of a CPU are numpy's
    values = torch.empty(0)
    for (images, labels), _ in zip(trainer.batches.epoch(0), range(2), strict=False):
        with NoWaiting():
            values = trainer.step(images, labels)
        assert values.shape == (2,) and values.isfinite().all()
    for wait in (lambda: values.tolist(), lambda: float(values[0]), lambda: torch.tensor([1, 2])):
        with pytest.raises(AssertionError, match="waits"), NoWaiting():
            wait()


COLOURS = AugmentConfig(brightness=0.1, contrast=0.1, saturation=0.1, hue=0.1)
MOVED = AugmentConfig(crop=1, flip=True, shift=1, rotate=5.0, scale=0.1, shear=5.0)


@pytest.mark.parametrize("config", [MOVED, COLOURS, AugmentConfig(byerly=True)], ids=["moved", "colours", "byerly"])
def test_images_are_changed_without_waiting(config):
    """But for the first batch, for which constants are sent to the device."""
    pixels, draws = torch.randint(256, (4, 3, 12, 12), dtype=torch.uint8), draw(config, 4, mix(0, 1))
    wanted = augment(pixels, config, draws)
    with NoWaiting():
        found = augment(pixels, config, draws)
    assert torch.equal(found, wanted)


class StaysThere(TorchDispatchMode):
    """Refuses what makes a tensor on another device than meta, from which it would have to be sent."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for each in tree_leaves(found):
            assert not isinstance(each, torch.Tensor) or each.is_meta or not each.ndim, f"{function} is on the CPU"
        return found


@pytest.mark.parametrize("scope", ["image", "window"])
@pytest.mark.parametrize("routing", ["em", "variational-bayes"])
def test_steps_over_the_image_make_nothing_elsewhere(routing, scope):
    transform = ConvTransform(2, 3, 4, 4, stride=2, padding=1, matrix=True)
    layer = CapsuleLayer(transform, routing, "plain", scope=scope).to("meta")
    poses, activations = (torch.empty(shape, device="meta") for shape in ((2, 5, 5, 2, 4), (2, 5, 5, 2)))
    with StaysThere():
        out = layer(Capsules(poses.requires_grad_(), activations), 2).capsules
        out.poses.sum().backward()
    with pytest.raises(AssertionError, match="arange"), StaysThere():
        torch.arange(3)


@pytest.mark.parametrize("sets", [False, True])
def test_a_meter_counts_without_copies(sets):
    meter = Meter(torch.device("cpu"), 1 if not sets else None)
    labels = torch.tensor([0, 2, 1]) if not sets else torch.eye(3, dtype=torch.uint8)
    with NoWaiting():
        for _ in range(2):
            meter.update(torch.ones(()), torch.eye(3), labels)
    score = meter.compute()
    assert (score.images, score.errors) == (6, 0 if sets else 4) and (score.label_accuracy is None) != sets


def test_what_a_step_gives_is_read_when_its_event_has_come(monkeypatch):
    said = []

    class Event:
        def record(self, stream):
            said.append(f"recorded on {stream}")

        def synchronize(self):
            said.append("waited")

    class OnDevice:
        """A tensor that says it is on a GPU."""

        shape, dtype, device = torch.Size([2]), torch.float32, torch.device("cuda", 1)

    class Host:
        def copy_(self, values, non_blocking):
            assert isinstance(values, OnDevice) and non_blocking
            said.append("copied")

        def tolist(self):
            said.append("read")
            return [1.0, 2.0]

    monkeypatch.setattr(readback, "pinned_like", lambda values: Host())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    values = Readback(OnDevice())
    assert said == ["copied", "recorded on the stream of cuda:1"]
    assert values.tolist() == [1.0, 2.0] and said[2:] == ["waited", "read"]
    assert Readback(torch.tensor([3.0])).tolist() == [3.0]


def by_the_older_interface():
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = False


def by_name():
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = "ieee"


@pytest.mark.parametrize("sets", [by_the_older_interface, by_name, lambda: None])
def test_settings_of_a_gpu_are_the_runs_own_and_said(sets):
    """Whichever of torch's two interfaces they were set by: the older one refuses to be read after the newer."""
    before = devices._settings()
    try:
        sets()
        torch.backends.cudnn.benchmark = False
        mine = devices._settings()
        with settled(torch.device("cuda")):
            assert describe_settings(torch.device("cuda")) == {
                "tf32": {"convolutions": True, "products": False},
                "cudnn_benchmark": True,
            }
            assert torch.get_float32_matmul_precision() == "highest" and torch.backends.cudnn.allow_tf32
        assert devices._settings() == mine
        with settled(torch.device("cpu")):
            assert devices._settings() == mine and describe_settings(torch.device("cpu")) == {}
    finally:
        devices._settle(before)
