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
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from torchcaps.config import Config, DataConfig
from torchcaps.data.catalogue import find
from torchcaps.data.facts import data_facts

if TYPE_CHECKING:
    from torch import Tensor

    from torchcaps.models import Model

CLASSES = {"h-imagenet": 200}  # of the papers, where the user's files decide
REPEATS = 5  # timed passes, after one that is not
LEAST = 2  # of them, where patience ends
TURNS = 15  # of networks that are timed beside each other
LONG_ENOUGH = 0.5  # seconds of repeats


def model_arguments(config: Config) -> dict[str, Any]:
    """Return what `create_model` is called with for a recipe, without reading its data; of the user's own, see
    `data_facts`.

    Raises:
        FileNotFoundError, ValueError: as `data_facts` of the user's own files.
    """
    entry, path = find(config.data.name)
    data = config.data
    given = data.enlarge, data.crop, data.pad, data.image_size, data.compose.size, entry.image_size
    size: int | tuple[int, int] | None = next((each for each in given if each), None)
    classes, channels = len(entry.classes) or CLASSES.get(entry.name, 0), data.compose.channels or entry.channels or 3
    if path is not None:
        facts = data_facts(data)
        size, classes, channels = size or facts.size, facts.classes, _channels(data, facts.colour)
    assert size is not None, config.data.name
    return {
        "name": config.model.name,
        "num_classes": classes,
        "in_channels": channels,
        "image_size": size,
        **config.model.options,
    }


def _channels(data: DataConfig, colour: bool) -> int:
    return {"auto": 3 if colour else 1, "grey": 1, "rgb": 3}[data.colour]


def image_shape(config: Config) -> tuple[int, int, int]:
    """Return channels, height and width of the images that the network of a recipe sees."""
    shape = model_arguments(config)
    size = shape["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return shape["in_channels"], height, width


def build_network(config: Config) -> Model:
    """Return the network of a recipe, with fresh weights."""
    from torchcaps.models import create_model

    return create_model(**model_arguments(config))


def count_parameters(config: Config) -> float:
    """Return trainable parameters, in millions; the network is built without memory for them."""
    import torch

    with torch.device("meta"):
        return sum(each.numel() for each in build_network(config).parameters() if each.requires_grad) / 1e6


def count_part(config: Config, decoder: bool, statistics: bool = False) -> float:
    """Return trainable parameters of the network's decoder, or of all else, in millions.

    Args:
        config: a recipe whose network has a decoder.
        decoder: which of the two.
        statistics: count the running statistics of batch norm with them, as some frameworks print it.
    """
    import torch

    with torch.device("meta"):
        network = build_network(config)
    counted = {name: each.numel() for name, each in network.named_parameters() if each.requires_grad}
    if statistics:
        counted |= {name: each.numel() for name, each in network.named_buffers() if "running" in name}
    return sum(count for name, count in counted.items() if name.startswith("decoder.") == decoder) / 1e6


def mebibytes(config: Config) -> float:
    """Return four times the size of the float32 parameters in MiB, the unit of EncapNet's Table 1."""
    return 4 * 4 * 1e6 * count_parameters(config) / 2**20


def latency(config: Config, batch_size: int = 128, device: str = "auto") -> float:
    """Return milliseconds that the network takes for a batch of `batch_size` images, the median of at least five
    passes.
    """
    forward, place = _inference(config, batch_size, device)
    return 1000 * _median_seconds(forward, place)


def latencies(configs: Sequence[Config], batch_size: int = 128, device: str = "auto") -> list[float]:
    """Return milliseconds that each network takes for a batch, the median of passes that they take in turns.

    For networks that differ by less than a machine's speed does from one minute to the next.
    """
    passes = [_inference(config, batch_size, device) for config in configs]
    times = [[_seconds(*each) for each in passes] for _ in range(TURNS + 1)]
    return [1000 * median(column) for column in zip(*times[1:], strict=True)]


def alone(measure: Callable[..., float], config: Config, **options: Any) -> float:
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
    forward()
    reset_peak(place)
    forward()
    return peak_memory(place) / 1e6


def step_seconds(config: Config, batch_size: int, device: str = "auto", patience: float = math.inf) -> float:
    """Return seconds of a training step on a batch of `batch_size` images: the median of at least five, but of two
    where more would take longer than `patience`, in seconds.
    """
    step, place = training_step(config, batch_size, device)
    return _median_seconds(step, place, patience)


def hundred_steps(config: Config, device: str = "auto") -> float:
    """Return seconds of 100 training steps of the recipe's own batches, by the median of at least five."""
    return 100 * step_seconds(config, config.batch_size, device)


def step_memory(config: Config, batch_size: int, device: str = "auto") -> float:
    """Return megabytes that the process holds at most in a training step, weights and the optimiser's state
    included.
    """
    step, place = training_step(config, batch_size, device)
    step()
    reset_peak(place)
    step()
    return peak_memory(place) / 1e6


def _median_seconds(function: Callable[[], object], place: str, patience: float = math.inf) -> float:
    times: list[float] = []
    while len(times) <= REPEATS or sum(times[1:]) < LONG_ENOUGH:
        times.append(_seconds(function, place))
        if len(times) > LEAST and sum(times[1:]) > patience:
            break
    return median(times[1:])


def _seconds(function: Callable[[], object], place: str) -> float:
    import torch

    begun = time.perf_counter()
    function()
    if place == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def training_step(config: Config, batch_size: int, device: str) -> tuple[Callable[[], None], str]:
    """Return a step as the library trains, on a batch of noise with labels at random, and the device that it runs
    on.
    """
    import torch

    from torchcaps.losses import multi_hot
    from torchcaps.train.phases import Batch, LossModule, build_phases, step_phases
    from torchcaps.train.processes import build_fabric

    model, images, place = _prepare(config, batch_size, device)
    config = replace(config, device=place, processes=1, batch_size=batch_size)
    fabric, phases = build_fabric(config), build_phases(model, config)
    wrapped, optimizer = fabric.setup(LossModule(model, *phases), phases[0].optimizer)
    classes = model_arguments(config)["num_classes"]
    labels = torch.randint(classes, (batch_size,), device=place)
    batch = Batch(images, labels, multi_hot(labels, classes))

    def step() -> None:
        step_phases(fabric, model, wrapped, optimizer, phases, batch, config.clip)

    return step, place


def _inference(config: Config, batch_size: int, device: str) -> tuple[Callable[[], Tensor], str]:
    """Return a pass in float32 over a batch of noise, and the device that it runs on."""
    import torch

    model, images, place = _prepare(config, batch_size, device)
    model.eval()

    @torch.inference_mode()
    def forward() -> Tensor:
        return model(images).scores

    return forward, place


def _prepare(config: Config, batch_size: int, device: str) -> tuple[Model, Tensor, str]:
    """Return the network and a batch of noise, both of the config's seed, as the library has them there: channels
    last.
    """
    import torch
    from torch.nn.utils import convert_conv2d_weight_memory_format

    from torchcaps.train.allocator import keep_freed_memory
    from torchcaps.train.devices import choose_device

    place = choose_device(device)
    if place == "cpu":
        keep_freed_memory()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model, images = build_network(config), torch.rand(batch_size, *image_shape(config))
    model, images = convert_conv2d_weight_memory_format(model, torch.channels_last).to(place), images.to(place)
    return model, images.contiguous(memory_format=torch.channels_last), place


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
