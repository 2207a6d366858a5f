"""Which device, precision and form of a step a run takes on the machine that it is on, and a GPU's settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from torchcaps.config import ModelConfig
from torchcaps.models import create_model


def choose_device(name: str, processes: int = 1) -> str:
    """Return the accelerator "cpu", "cuda" or "mps" for `name`; "auto" is CUDA or MPS where enough are there, else
    the CPU.

    Raises:
        ValueError: for another name, or for more devices than there are.
    """
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": processes}
    if name == "auto":
        return next(device for device, count in counts.items() if count >= processes)
    if name not in counts:
        raise ValueError(f"device is {name!r}; it must be auto, cpu, cuda or mps")
    if counts[name] < processes:
        there = ", ".join(device for device, count in counts.items() if count)
        raise ValueError(
            f"device {name!r} was asked for {processes} time(s), and this machine has {counts[name]} (there: {there})"
        )
    return name


def choose_precision(name: str, device: str, depthwise: bool = False) -> str:
    """Return Fabric's name of a precision; "auto" is bf16 where `device` multiplies in it natively, else fp32.

    On a CPU `depthwise` networks train faster in float32: gradients of their convolutions are slow in bf16.
    """
    if name == "auto" and device == "cpu" and depthwise:
        name = "fp32"
    if name == "auto":
        native = {
            "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
            "cpu": lambda: torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
            "mps": lambda: False,
        }
        name = "bf16" if native[device]() else "fp32"
    return {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[name]


def choose_compile(choice: bool | str, device: str, depthwise: bool = False) -> bool:
    """Return whether a training step is to be compiled; "auto": on a GPU, and on a CPU that of a `depthwise`
    network.
    """
    return choice is True or (choice == "auto" and (device == "cuda" or depthwise))


def is_depthwise(config: ModelConfig) -> bool:
    """Return whether a good part of a timm model's convolutions, a quarter, are depthwise, as MobileNet's; of others
    False.

    The network is built without memory for its weights.
    """
    if "." not in config.name:
        return False
    options: dict[str, Any] = {name: value for name, value in config.options.items() if name != "pretrained"}
    with torch.device("meta"):
        model = create_model(config.name, in_channels=3, **options)
    convolutions = [each for each in model.modules() if isinstance(each, torch.nn.Conv2d)]
    depthwise = [each for each in convolutions if 1 < each.groups == each.in_channels]
    return 4 * len(depthwise) >= len(convolutions) > 0


@contextmanager
def settled(device: torch.device) -> Iterator[None]:
    """Return torch's settings of a GPU as a run has them, whatever was set before, and is again afterwards.

    Convolutions in float32 may round their factors to TF32, as is torch's default; other products may not, since
    agreements that differ little decide where a child goes. cuDNN times its algorithms once for each shape.
    """
    if device.type != "cuda":
        yield
        return
    before = _settings()
    _settle("highest", tf32=True, benchmark=True)
    try:
        yield
    finally:
        _settle(*before)


def _settings() -> tuple[str, bool, bool]:
    cudnn = torch.backends.cudnn
    return torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark


def _settle(products: str, tf32: bool, benchmark: bool) -> None:
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = benchmark


def describe_settings(device: torch.device) -> dict:
    """Return how float32 is multiplied on a GPU, and how convolutions are chosen; nothing of other devices."""
    if device.type != "cuda":
        return {}
    products, tf32, benchmark = _settings()
    tf32_of = {"convolutions": tf32, "products": products != "highest"}
    return {"tf32": tf32_of, "cudnn_benchmark": benchmark}
