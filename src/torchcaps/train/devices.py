"""Which device, precision and form of a step a run takes on the machine that it is on, and a GPU's settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import torch

from torchcaps.config import ModelConfig
from torchcaps.denormals import SMALLEST
from torchcaps.kernels.threads import in_each_thread
from torchcaps.models.registry import create_meta


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
    options: dict[str, Any] = dict(config.options)
    model = create_meta(config.name, in_channels=3, **options)
    convolutions = [each for each in model.modules() if isinstance(each, torch.nn.Conv2d)]
    depthwise = [each for each in convolutions if 1 < each.groups == each.in_channels]
    return 4 * len(depthwise) >= len(convolutions) > 0


@contextmanager
def settled(device: torch.device) -> Iterator[None]:
    """Return torch's settings as a run has them, whatever was set before, and is again afterwards.

    On a CPU numbers below the smallest normal one, 1.2e-38 in float32, count as 0. Weight decay leaves them where
    nothing else moves a weight, and a processor takes ten times as long for a network that is half of them. On a GPU
    convolutions in float32 may round their factors to TF32, as is torch's default; other products may not, since
    agreements that differ little decide where a child goes. cuDNN times its algorithms once for each shape.
    """
    if device.type == "cpu":
        with _flushing():
            yield
        return
    if device.type != "cuda":
        yield
        return
    before = _settings()
    _settle(RUN)
    try:
        yield
    finally:
        _settle(before)


@contextmanager
def _flushing() -> Iterator[None]:
    before = (torch.full((1,), SMALLEST) / 2).item() == 0
    in_each_thread(partial(torch.set_flush_denormal, True))
    try:
        yield
    finally:
        in_each_thread(partial(torch.set_flush_denormal, before))


class Settings(NamedTuple):
    """What torch does with products in float32, as both of its interfaces say it.

    The older one refuses to be read where the newer one, by name, contradicts it; what it says is None then.
    """

    products: str | None  # of `torch.get_float32_matmul_precision`
    cudnn: bool | None  # of `torch.backends.cudnn.allow_tf32`
    by_name: tuple[str, ...]  # of `_named`, in its order
    benchmark: bool


RUN = Settings("highest", True, ("ieee", "tf32", "tf32", "ieee"), True)


def _named() -> tuple[Any, ...]:
    """Return what holds a setting each: products, convolutions and recurrences on a GPU, and products on a CPU."""
    backends: Any = torch.backends
    return backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul


def _settings() -> Settings:
    products = cudnn = None
    with suppress(RuntimeError):
        products = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        cudnn = torch.backends.cudnn.allow_tf32
    return Settings(products, cudnn, tuple(each.fp32_precision for each in _named()), torch.backends.cudnn.benchmark)


def _settle(settings: Settings) -> None:
    """Set the older interface first, which changes the newer one too."""
    if settings.products is not None:
        torch.set_float32_matmul_precision(settings.products)
    if settings.cudnn is not None:
        torch.backends.cudnn.allow_tf32 = settings.cudnn
    for each, precision in zip(_named(), settings.by_name, strict=True):
        each.fp32_precision = precision
    torch.backends.cudnn.benchmark = settings.benchmark


def describe_settings(device: torch.device) -> dict:
    """Return how float32 is multiplied on a GPU, and how convolutions are chosen; nothing of other devices."""
    if device.type != "cuda":
        return {}
    products, convolutions, *_ = _settings().by_name
    tf32_of = {"convolutions": convolutions == "tf32", "products": products == "tf32"}
    return {"tf32": tf32_of, "cudnn_benchmark": torch.backends.cudnn.benchmark}
