"""Fabric for a `Config`, and what the processes of a run are started by, joined by, and end with."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Literal, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import distributed
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from torchcaps.config import Config
from torchcaps.ranks import Ranks, given_ranks
from torchcaps.terminal import warn
from torchcaps.train.check import check_shares
from torchcaps.train.devices import choose_device, choose_precision, is_depthwise
from torchcaps.train.run import InUse

T = TypeVar("T")
_KINDS = (ValueError, FileNotFoundError, FloatingPointError, KeyboardInterrupt, MemoryError, OSError)
# Errors of a spawned process that keep their type, by the name that a traceback has of them.
_PASSED = {each.__name__: each for each in _KINDS} | {f"{InUse.__module__}.{InUse.__qualname__}": InUse}
_LOST_PEER = re.compile("closed by peer|reset by peer|Broken pipe|remote process exited", re.IGNORECASE)
_SHORTAGE = re.compile("can't allocate memory|not enough memory|out of memory|_STATUS_ALLOC_FAILED", re.IGNORECASE)


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
        """Pass Fabric's guess over: the ranks are given."""

    def local_rank(self) -> int:
        return self.ranks.local

    def node_rank(self) -> int:
        return self.ranks.node


def join_ranks(config: Config) -> Config:
    """Return `config` with as many processes as torchrun or srun has started together with this one, where it has.

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
    """Return Fabric on the device, in the precision and with the number of processes that `config` asks for, not
    launched.

    Processes that were started together (see `join_ranks`) are joined. Others are spawned (not the script started
    again, as Fabric's "ddp" would: that runs an entry point's own arguments and side effects once more). The graph of a
    step is static, so DDP tolerates parameters, such as an unused decoder's, to which the loss sends no gradient.

    Raises:
        ValueError: for a device that is not there, or processes that cannot share the batch equally.
    """
    check_shares(config)
    ranks = given_ranks() if config.processes > 1 else None
    if ranks is not None and ranks.bound and config.device in ("auto", "cuda") and torch.cuda.device_count() == 1:
        ranks = ranks._replace(here=1, local=0)  # as on a machine of its own, whose only GPU is the first
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
        strategy=_together(device, start) if config.processes > 1 else "auto",
        plugins=[LightningEnvironment() if ranks is None else Joined(ranks)] if config.processes > 1 else [],
        precision=choose_precision(config.precision, device, depthwise),  # pyright: ignore[reportArgumentType]
    )


def _together(device: str, start: Literal["popen", "spawn"]) -> DDPStrategy:
    """Return how processes reduce: by Gloo on GPUs too where there is no NCCL, as on Windows."""
    gloo = device == "cuda" and not distributed.is_nccl_available()
    return DDPStrategy(start_method=start, static_graph=True, process_group_backend="gloo" if gloo else None)


def build_measuring(config: Config, device: str = "auto") -> Fabric:
    """Return Fabric to measure a run of `config` with: on `device`, in the run's precision and one process, not
    launched.

    A run in fp16 is measured in fp32 on a CPU, which has no fp16; that is said.

    Raises:
        ValueError: for a device that is not there.
    """
    config = replace(config, device=device, processes=1)
    if config.precision == "fp16" and choose_device(device) == "cpu":
        warn("the run was trained in fp16, which a CPU does not have: it is measured in fp32")
        config = replace(config, precision="fp32")
    return build_fabric(config)


def launch(fabric: Fabric, function: Callable[[Fabric], T]) -> T:
    """Return what `function` returns in the first process of `fabric`; it must be importable, since processes are
    spawned.

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
def name_shortage(config: Config, device: torch.device, measured: bool = False) -> Iterator[None]:
    """Turn the several errors for too little memory into a MemoryError that says which batch size to try, or of a run
    that is `measured` and keeps its own which device.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not _SHORTAGE.search(str(error)):
            raise
        half = config.batch_size // 2 // config.processes * config.processes
        mend = f"try --batch-size {half}" if half else "a smaller model or image_size is needed"
        if measured:
            mend = "a machine that has more is needed" if device.type == "cpu" else "try --device cpu"
        raise MemoryError(f"{device.type} has too little memory for batch_size {config.batch_size}: {mend}") from error


def _run_and_part(fabric: Fabric, function: Callable[[Fabric], T]) -> T:
    """Call `function`, and leave the group of processes together: one that exits while in it may abort."""
    result = function(fabric)
    if fabric.world_size > 1:
        fabric.barrier()
        distributed.destroy_process_group()
    return result
