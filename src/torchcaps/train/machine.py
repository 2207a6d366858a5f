"""The machine that a run is on: Fabric for a `Config`, and a record of what the run ran with."""

from __future__ import annotations

import logging
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import distributed
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

import torchcaps
from torchcaps.config import Config, ModelConfig
from torchcaps.models import create_model
from torchcaps.ranks import Ranks, given_ranks
from torchcaps.terminal import warn

T = TypeVar("T")
_PACKAGES = ("torch", "lightning-fabric", "numpy", "safetensors")
_KINDS = (ValueError, FileNotFoundError, FloatingPointError, KeyboardInterrupt, MemoryError, OSError)
_PASSED = {each.__name__: each for each in _KINDS}  # errors of a spawned process that keep their type
_LOST_PEER = re.compile("closed by peer|reset by peer|Broken pipe|remote process exited", re.IGNORECASE)
_SHORTAGE = re.compile("can't allocate memory|not enough memory|out of memory", re.IGNORECASE)


def choose_device(name: str, processes: int = 1) -> str:
    """The accelerator "cpu", "cuda" or "mps" for `name`; "auto" is CUDA or MPS where enough are there, else the CPU.

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
    """Fabric's name of a precision; "auto" is bf16 where `device` multiplies in it natively, else fp32.

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
    """Whether a training step is to be compiled; "auto": on a GPU, and on a CPU that of a `depthwise` network."""
    return choice is True or (choice == "auto" and (device == "cuda" or depthwise))


def is_depthwise(config: ModelConfig) -> bool:
    """Whether a good part of a timm model's convolutions, a quarter, are depthwise, as MobileNet's; of others False.

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


class Joined(ClusterEnvironment):
    """What Fabric asks about processes that were started together."""

    def __init__(self, ranks: Ranks):
        self.ranks = ranks

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self.ranks.address

    @property
    def main_port(self) -> int:
        return self.ranks.port

    @staticmethod
    def detect() -> bool:
        return given_ranks() is not None

    def world_size(self) -> int:
        return self.ranks.world

    def set_world_size(self, size: int) -> None:
        assert size == self.ranks.world, size

    def global_rank(self) -> int:
        return self.ranks.rank

    def set_global_rank(self, rank: int) -> None:
        """Fabric's guess is passed over: the ranks are given."""

    def local_rank(self) -> int:
        return self.ranks.local

    def node_rank(self) -> int:
        return self.ranks.node


def join_ranks(config: Config) -> Config:
    """`config` with as many processes as torchrun or srun has started together with this one, where it has.

    Raises:
        ValueError: where the config asks for another number.
    """
    ranks = given_ranks()
    if ranks is None:
        return config
    if config.processes not in (1, ranks.world):
        raise ValueError(f"processes is {config.processes}, but {ranks.by} has started {ranks.world}: leave it out")
    return replace(config, processes=ranks.world)


def build_fabric(config: Config) -> Fabric:
    """Fabric on the device, in the precision and with the number of processes that `config` asks for, not launched.

    Processes that were started together (see `join_ranks`) are joined. Others are spawned (not the script started
    again, as Fabric's "ddp" would: that runs an entry point's own arguments and side effects once more). The graph of a
    step is static, so DDP tolerates parameters, such as an unused decoder's, to which the loss sends no gradient.

    Raises:
        ValueError: for a device that is not there, or processes that cannot share the batch equally.
    """
    if config.processes < 1:
        raise ValueError(f"processes is {config.processes}; it must be at least 1")
    if config.batch_size < 1 or config.batch_size % config.processes:
        raise ValueError(
            f"batch_size is {config.batch_size}; it must be a positive multiple of processes ({config.processes})"
        )
    ranks = given_ranks() if config.processes > 1 else None
    here = config.processes if ranks is None else ranks.here  # of them on this machine
    device = choose_device(config.device, here)
    if config.precision == "fp16" and device == "cpu":
        raise ValueError("precision is 'fp16', but device is 'cpu', which has no such training: take bf16 or fp32")
    depthwise = config.precision == "auto" and is_depthwise(config.model)
    for name in ("rank_zero", "distributed"):  # environment.json says what is
        logging.getLogger(f"lightning_fabric.utilities.{name}").setLevel(logging.WARNING)
    start = "spawn" if ranks is None else "popen"
    return Fabric(
        accelerator=device,
        devices=here,
        num_nodes=config.processes // here,
        strategy=DDPStrategy(start_method=start, static_graph=True) if config.processes > 1 else "auto",
        plugins=[LightningEnvironment() if ranks is None else Joined(ranks)] if config.processes > 1 else [],
        precision=choose_precision(config.precision, device, depthwise),  # pyright: ignore[reportArgumentType]
    )


def launch(fabric: Fabric, function: Callable[[Fabric], T]) -> T:
    """What `function` returns in the first process of `fabric`; it must be importable, since processes are spawned.

    What it returns comes through a pipe of which nobody reads before it ends, and must be small: some kilobytes.

    Raises:
        ValueError, FileNotFoundError, ...: those of `_PASSED`, as `function` does, from whichever process.
        ChildProcessError: when one of the processes was killed; the others have been ended then.
        RuntimeError: for any other error in a spawned process.
    """
    try:
        return fabric.launch(partial(_run_and_part, function=function))
    except ProcessRaisedException as error:
        kind, _, message = str(error).strip().splitlines()[-1].partition(": ")
        if _LOST_PEER.search(message):
            raise ChildProcessError(_ended(f"process {error.error_index} has lost another one", fabric)) from error
        raise _PASSED.get(kind, RuntimeError)(message or kind) from error
    except ProcessExitedException as error:
        how = error.signal_name or f"status {error.exit_code}"
        raise ChildProcessError(_ended(f"process {error.error_index} was ended by {how}", fabric)) from error
    except RuntimeError as error:
        if fabric.world_size > 1 and _LOST_PEER.search(str(error)):  # one of processes that were started together
            raise ChildProcessError(_ended(f"process {fabric.global_rank} has lost another one", fabric)) from error
        raise


def _ended(what: str, fabric: Fabric) -> str:
    return f"{what}, and so the run of {fabric.world_size} processes; --resume continues it from its last checkpoint"


@contextmanager
def name_shortage(config: Config, device: torch.device) -> Iterator[None]:
    """Turn the several errors for too little memory into a MemoryError that says which batch size to try."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not _SHORTAGE.search(str(error)):
            raise
        half = config.batch_size // 2 // config.processes * config.processes
        mend = f"try --batch-size {half}" if half else "a smaller model or image_size is needed"
        raise MemoryError(f"{device.type} has too little memory for batch_size {config.batch_size}: {mend}") from error


def _run_and_part(fabric: Fabric, function: Callable[[Fabric], T]) -> T:
    """Call `function`, and leave the group of processes together: one that exits while in it may abort."""
    result = function(fabric)
    if fabric.world_size > 1:
        fabric.barrier()
        distributed.destroy_process_group()
    return result


@contextmanager
def settled(device: torch.device) -> Iterator[None]:
    """Torch's settings of a GPU as a run has them, whatever was set before, and is again afterwards.

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


def describe_environment(fabric: Fabric) -> dict:
    """What `environment.json` holds: the machine, and what a run has of it."""
    return {
        **describe_machine(),
        "device": fabric.device.type,
        "processes": fabric.world_size,
        "precision": fabric.strategy.precision.precision,
        **describe_settings(fabric.device),
    }


def describe_settings(device: torch.device) -> dict:
    """Of a GPU how float32 is multiplied, and how convolutions are chosen; of other devices nothing."""
    if device.type != "cuda":
        return {}
    products, tf32, benchmark = _settings()
    tf32_of = {"convolutions": tf32, "products": products != "highest"}
    return {"tf32": tf32_of, "cudnn_benchmark": benchmark}


def describe_machine() -> dict:
    """Versions, commit and hardware, as every result states them. No host is named."""
    return {
        "python": platform.python_version(),
        "torchcaps": torchcaps.__version__,
        **{package: version(package) for package in _PACKAGES},
        "commit": describe_commit(Path(torchcaps.__file__).parent),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": describe_cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def describe_commit(package: Path) -> dict | None:
    """Commit of the checkout that tracks the folder `package`, and whether the folder differs; None elsewhere."""

    def git(*arguments: str) -> str:
        answer = subprocess.run(
            ["git", "-C", str(package), *arguments], capture_output=True, encoding="utf-8", check=True
        )
        return answer.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return {"hash": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "."))}
    except (OSError, subprocess.CalledProcessError):
        return None


def describe_cpu() -> str:
    """Model name of the processor, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def keep_threads(environment: Mapping[str, Any], device: torch.device) -> None:
    """Go on with as many threads as a run that wrote `environment` began with, on a CPU, and say so.

    Sums in another number of pieces end in other bits.
    """
    before, now = environment.get("threads"), torch.get_num_threads()
    if device.type == "cpu" and type(before) is int and 0 < before != now:
        warn(
            f"this run was begun with {before} threads, and goes on with as many ({now} here), so that it ends in the "
            "same bits"
        )
        torch.set_num_threads(before)
