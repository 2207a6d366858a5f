"""Numbers of a recipe's network that need no training: parameters, time and memory of inference, and of a process.

torch is imported by the functions that need it.
"""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from torchcaps.config import Config
from torchcaps.data.catalogue import find

if TYPE_CHECKING:
    from torch import Tensor

    from torchcaps.models import Model

REPEATS = 5  # timed passes, after one that is not


def model_arguments(config: Config) -> dict[str, Any]:
    """What `create_model` is called with for a recipe on a named data set, without reading the data.

    Raises:
        ValueError: where the sizes are those of the user's own files.
    """
    entry, _ = find(config.data.name)
    size: int | tuple[int, int] | None = config.data.crop or config.data.image_size or config.data.compose.size
    size = size or entry.image_size
    if size is None:
        raise ValueError(f"data.name is {config.data.name}, whose images may have any size: give data.image_size")
    return {
        "name": config.model.name,
        "num_classes": len(entry.classes),
        "in_channels": config.data.compose.channels or entry.channels,
        "image_size": size,
        **config.model.options,
    }


def build_network(config: Config) -> Model:
    """The network of a recipe, with fresh weights."""
    from torchcaps.models import create_model

    return create_model(**model_arguments(config))


def count_parameters(config: Config) -> float:
    """Trainable parameters, in millions."""
    return sum(each.numel() for each in build_network(config).parameters() if each.requires_grad) / 1e6


def mebibytes(config: Config) -> float:
    """Four times the size of the float32 parameters in MiB, the unit of EncapNet's Table 1."""
    return 4 * 4 * 1e6 * count_parameters(config) / 2**20


def latency(config: Config, batch_size: int = 128, device: str = "auto") -> float:
    """Milliseconds that the network takes for a batch of `batch_size` images, the median of five passes."""
    import torch

    forward, place = _inference(config, batch_size, device)
    times = []
    for _ in range(REPEATS + 1):
        begun = time.perf_counter()
        forward()
        if place == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return 1000 * median(times[1:])


def inference_memory(config: Config, batch_size: int = 128, device: str = "auto") -> float:
    """Megabytes that the process holds at most while it infers a batch, weights included."""
    forward, place = _inference(config, batch_size, device)
    forward()
    reset_peak(place)
    forward()
    return peak_memory(place) / 1e6


def _inference(config: Config, batch_size: int, device: str) -> tuple[Callable[[], Tensor], str]:
    """A pass over a batch of noise, and the device that it runs on."""
    import torch

    from torchcaps.train.machine import choose_device

    place = choose_device(device)
    shape = model_arguments(config)
    size, channels = shape["image_size"], shape["in_channels"]
    height, width = (size, size) if isinstance(size, int) else size
    model = build_network(config).eval().to(place)
    images = torch.rand(batch_size, channels, height, width, device=place)

    @torch.inference_mode()
    def forward() -> Tensor:
        return model(images).scores

    return forward, place


def reset_peak(device: str) -> None:
    """Count the peak of memory from now on; on a CPU where the system can (Linux), else it is that of the process."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: str) -> int:
    """The most bytes that the process has held since `reset_peak`: of the GPU, else resident in memory."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
