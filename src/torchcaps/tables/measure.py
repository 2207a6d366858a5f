"""Numbers of a recipe's network that need no training: parameters, time and memory of inference, and of a process.

torch is imported by the functions that need it.
"""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from torchcaps.config import Config
from torchcaps.memory import kept

REPEATS = 5  # timed passes, after one that is not
LEAST = 2  # of them, where patience ends
TURNS = 15  # of networks that are timed beside each other
LONG_ENOUGH = 0.5  # seconds of repeats
T = TypeVar("T")


def count_parameters(config: Config, statistics: bool = False) -> float:
    """Return trainable parameters, in millions; the network is built without memory for them.

    Args:
        config: a recipe.
        statistics: count the running statistics of batch norm with them, as some frameworks print it.
    """
    return sum(_count_by_name(config, statistics).values()) / 1e6


def count_part(config: Config, decoder: bool, statistics: bool = False) -> float:
    """Return trainable parameters of the network's decoder, or of all else, in millions.

    Args:
        config: a recipe whose network has a decoder.
        decoder: which of the two.
        statistics: as for `count_parameters`.
    """
    counted = _count_by_name(config, statistics)
    return sum(count for name, count in counted.items() if name.startswith("decoder.") == decoder) / 1e6


def _count_by_name(config: Config, statistics: bool) -> dict[str, int]:
    """Return how many numbers each trainable tensor of the network holds."""
    from torchcaps.tables.network import build_meta

    network = build_meta(config)
    counted = {name: each.numel() for name, each in network.named_parameters() if each.requires_grad}
    if statistics:
        counted |= {name: each.numel() for name, each in network.named_buffers() if "running" in name}
    return counted


def mebibytes(config: Config) -> float:
    """Return four times the size of the float32 parameters in MiB, the unit of EncapNet's Table 1."""
    return 4 * 4 * 1e6 * count_parameters(config) / 2**20


def latency(config: Config, batch_size: int = 128, device: str = "auto") -> float:
    """Return milliseconds that the network takes for a batch of `batch_size` images, the median of at least five
    passes.
    """
    forward, place = _inference(config, batch_size, device)
    with kept(place):
        return 1000 * _median_seconds(forward, place)


def latencies(configs: Sequence[Config], batch_size: int = 128, device: str = "auto") -> list[float]:
    """Return milliseconds that each network takes for a batch, the median of passes that they take in turns.

    For networks that differ by less than a machine's speed does from one minute to the next.
    """
    passes = [_inference(config, batch_size, device) for config in configs]
    with kept(passes[0][1]):
        times = [[_seconds(*each) for each in passes] for _ in range(TURNS + 1)]
    return [1000 * median(column) for column in zip(*times[1:], strict=True)]


def alone(measure: Callable[..., T], config: Config, **options: Any) -> T:
    """Return what `measure`, a function of a module, finds of `config` in a process of its own.

    Of memory, since this process keeps what networks before have given back, which would count as this one's.

    Raises:
        ValueError: when the process does not live to say, as where memory runs out; and what `measure` raises.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(measure, config, **options).result()
        except BrokenProcessPool as error:
            raise ValueError("the process that measures was ended, as systems do that run out of memory") from error


def inference_memory(config: Config, batch_size: int = 128, device: str = "auto") -> float:
    """Return megabytes that the process holds at most while it infers a batch, weights included."""
    forward, place = _inference(config, batch_size, device)
    return _peak(forward, place)


def step_seconds(config: Config, batch_size: int, device: str = "auto", patience: float = math.inf) -> float:
    """Return seconds of a training step on a batch of `batch_size` images: the median of at least five, but of two
    where more would take longer than `patience`, in seconds.
    """
    step, place = _training_step(config, batch_size, device)
    with kept(place):
        return _median_seconds(step, place, patience)


def hundred_steps(config: Config, device: str = "auto") -> float:
    """Return seconds of 100 training steps of the recipe's own batches, by the median of at least five."""
    return 100 * step_seconds(config, config.batch_size, device)


def step_memory(config: Config, batch_size: int, device: str = "auto") -> float:
    """Return megabytes that the process holds at most in a training step, weights and the optimiser's state
    included.
    """
    step, place = _training_step(config, batch_size, device)
    return _peak(step, place)


def _inference(config: Config, batch_size: int, device: str) -> tuple[Callable[[], object], str]:
    """Return what `network.inference_pass` does."""
    from torchcaps.tables.network import inference_pass

    return inference_pass(config, batch_size, device)


def _training_step(config: Config, batch_size: int, device: str) -> tuple[Callable[[], None], str]:
    """Return what `network.training_step` does."""
    from torchcaps.tables.network import training_step

    return training_step(config, batch_size, device)


def _peak(function: Callable[[], object], place: str) -> float:
    """Return megabytes that the process holds at most in the second of two calls."""
    with kept(place):
        function()
        reset_peak(place)
        function()
        return peak_memory(place) / 1e6


def _median_seconds(function: Callable[[], object], place: str, patience: float = math.inf) -> float:
    times: list[float] = []
    while len(times) <= REPEATS or sum(times[1:]) < LONG_ENOUGH:
        times.append(_seconds(function, place))
        if len(times) > LEAST and sum(times[1:]) > patience:
            break
    return median(times[1:])


def _seconds(function: Callable[[], object], place: str) -> float:
    _wait(place)
    begun = time.perf_counter()
    function()
    _wait(place)
    return time.perf_counter() - begun


def _wait(place: str) -> None:
    """Wait until a device has done what was asked of it."""
    import torch

    if place == "cuda":
        torch.cuda.synchronize()
    elif place == "mps":
        torch.mps.synchronize()


def reset_peak(device: str) -> None:
    """Count the peak of memory from now on; on a CPU where the system can (Linux), else it is that of the process."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory(device: str) -> int:
    """Return the most bytes that the process has held since `reset_peak`: of the GPU, else resident in memory."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says there begins with the peak of the process that started this one
        return 1024 * next(
            int(line.split()[1])
            for line in status.read_text("ascii", "replace").splitlines()
            if line.startswith("VmHWM")
        )
    try:
        import resource
    except ImportError:
        return _peak_on_windows()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _peak_on_windows() -> int:
    """Return PeakWorkingSetSize, bytes, of PROCESS_MEMORY_COUNTERS: a structure of two numbers of 32 bits and eight
    sizes.
    """
    import ctypes

    class Counters(ctypes.Structure):
        _fields_ = [("cb", ctypes.c_uint32), ("faults", ctypes.c_uint32), ("sizes", ctypes.c_size_t * 8)]

    counters = Counters(cb=ctypes.sizeof(Counters))
    kernel = ctypes.WinDLL("kernel32")  # pyright: ignore[reportAttributeAccessIssue]
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    kernel.K32GetProcessMemoryInfo.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32)
    kernel.K32GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.cb)
    return counters.sizes[0]
