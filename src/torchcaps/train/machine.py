"""A record of the machine that a run is on, and what a resumed run keeps of it."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

import torchcaps
from torchcaps.terminal import warn
from torchcaps.train.devices import describe_settings

_PACKAGES = ("torch", "lightning-fabric", "numpy", "safetensors")


def describe_environment(fabric: Fabric) -> dict:
    """Return what `environment.json` holds: the machine, and what a run has of it."""
    return {
        **describe_machine(),
        "device": fabric.device.type,
        "processes": fabric.world_size,
        "precision": fabric.strategy.precision.precision,
        **describe_settings(fabric.device),
    }


def describe_machine() -> dict:
    """Return the versions, commit and hardware, as every result states them. No host is named."""
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
    """Return the commit of the checkout that tracks the folder `package`, and whether the folder differs from it; None
    elsewhere.
    """

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


def describe_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the name of the processor, as far as the system tells.

    Processors of a virtual machine are often called by their maker's name alone, whatever their generation; so family
    and model follow where Linux has them.
    """
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0].splitlines()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = found.get("model name") or platform.processor() or platform.machine()
    fields = {"family": "cpu family", "model": "model"}
    generation = [f"{said} {found[field]}" for said, field in fields.items() if field in found]
    return f"{name} ({', '.join(generation)})" if generation else name


@contextmanager
def kept_threads(environment: Mapping[str, Any], device: torch.device) -> Iterator[None]:
    """Go on, in the block, with as many threads as a run that wrote `environment` began with, on a CPU, and say so.

    Sums in another number of pieces end in other bits.
    """
    before, now = environment.get("threads"), torch.get_num_threads()
    if device.type == "cpu" and type(before) is int and 0 < before != now:
        warn(
            f"this run was begun with {before} threads, and goes on with as many ({now} here), so that it ends in the "
            "same bits"
        )
        torch.set_num_threads(before)
    try:
        yield
    finally:
        torch.set_num_threads(now)


def began_otherwise(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the description `now` of a run that goes on keeps of `before`, what it was until then: under "began"
    its precision and device where they were others, which is said.
    """
    changed = {name: before[name] for name in ("precision", "device") if before.get(name, now[name]) != now[name]}
    for name, value in changed.items():
        warn(f"this run was begun with {name} {value}, and goes on with {now[name]}: it ends otherwise than uncut")
    earlier = before.get("began")
    began = changed | (earlier if isinstance(earlier, dict) else {})
    return {"began": began} if began else {}
