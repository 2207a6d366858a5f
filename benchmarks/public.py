"""Public code of a routing beside ours and einsum, from a folder that stands outside the repository.

The folder holds Python files, one a rival, each whole in itself or bringing what it needs. A file defines

    NAME = "dynamic"                    # which of our routings it is
    ITERATIONS = 3                      # optional: how many it runs; else as many as this benchmark gives the routing
    def build(children, pose, parents, parent_pose) -> torch.nn.Module    # poses [b, i, c] to parents [b, j, d]
    def load(module, weight)            # optional: sets its weights to ours, [j, i, c, d], in place

Files are imported, so their code runs: give a folder that you have read. Those whose name begins with "_" are left
alone. Ours, einsum and the file's module get the same poses and, where they count children by activations, activations
of 1; forward, and forward with backward from the sum, are timed in turns. Where `load` is there, the line says how far
the file's parents are from ours; all other parameters are as each begins, and a file whose routing departs from ours
in more than its form shows it there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from report import interleaved, median_ratio, step
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent


class Rival(NamedTuple):
    """Of a file: its name, the SHA-256 of its bytes, and what it defines."""

    file: str
    sha256: str
    routing: str
    iterations: int
    build: Callable[[int, int, int, int], object]
    load: Callable[[nn.Module, Tensor], object] | None


def read_rivals(folder: Path, iterations: dict[str, int]) -> list[Rival]:
    """Import the files of a folder, in the order of their names; `iterations` has those of each of our routings.

    Raises:
        ValueError: when the folder is missing, empty or in the repository, or a file does not define what it should.
    """
    if folder.resolve().is_relative_to(ROOT.resolve()):
        raise ValueError(f"{folder} is in the repository: public code stays outside it, give another folder")
    files = sorted(path for path in folder.glob("*.py") if not path.name.startswith("_"))
    if not files:
        raise ValueError(f"{folder} has no Python file: give a folder with one for each rival")
    return [read_rival(path, iterations) for path in files]


def read_rival(path: Path, iterations: dict[str, int]) -> Rival:
    """Import one file, under a name that stands in nobody's way."""
    content = path.read_bytes()
    spec = importlib.util.spec_from_file_location(f"public_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    name, build, load = (getattr(module, key, None) for key in ("NAME", "build", "load"))
    if name not in iterations:
        raise ValueError(f"{path}: NAME is {name!r}, and should be one of {', '.join(iterations)}")
    if not callable(build):
        raise ValueError(f"{path} has no build(children, pose, parents, parent_pose) that gives a module")
    rounds = getattr(module, "ITERATIONS", iterations[name])
    if not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"{path}: ITERATIONS is {rounds!r}, and should be a whole number from 1")
    return Rival(path.name, hashlib.sha256(content).hexdigest(), name, rounds, build, load)


def compare(
    rival: Rival,
    ours: Callable[[], Tensor],
    plain: Callable[[], Tensor],
    poses: Tensor,
    weight: Tensor,
    repeats: int,
) -> dict[str, object]:
    """Of one line: the file's module beside ours and einsum, to parents' poses, from the same children [b, i, c].

    `weight` [j, i, c, d] is ours.

    Raises:
        ValueError: when the module does not give parents [b, j, d] that can be trained.
    """
    (batch, children, pose), (parents, parent_pose) = poses.shape, (weight.shape[0], weight.shape[-1])
    torch.manual_seed(0)
    module = rival.build(children, pose, parents, parent_pose)
    if not isinstance(module, nn.Module):
        raise ValueError(f"{rival.file}: build gives {type(module).__name__}, and should a torch.nn.Module")
    module.to(poses.device)
    if rival.load is not None:
        with torch.no_grad():
            rival.load(module, weight.detach())
    public = partial(module, poses)
    found, expected = public(), ours().detach().reshape(batch, parents, parent_pose)
    if found.shape != expected.shape:
        raise ValueError(f"{rival.file} gives parents {list(found.shape)}, and should {list(expected.shape)}")
    if not found.requires_grad:
        raise ValueError(f"{rival.file} gives parents that no gradient leaves: a step of it cannot be timed")
    difference = ((found.detach() - expected).abs().max() / expected.abs().max()).item() if rival.load else None
    timed = [public, plain, ours]
    values: dict[str, object] = {
        "sha256": rival.sha256,
        "routing": rival.routing,
        "iterations": rival.iterations,
        "device": poses.device.type,
        "threads": torch.get_num_threads(),
        "batch": batch,
        "repeats": repeats,
        "difference": difference,  # the largest, over the largest of ours
    }
    for key, functions in (("forward", timed), ("step", [partial(step, each) for each in timed])):
        seconds = interleaved(functions, repeats)
        for form, times in zip(("public_", "naive_", ""), seconds, strict=True):
            values[f"{form}{key}_ms"] = round(1000 * median(times), 2)
        values[f"{key}_speed_up"] = round(median_ratio(seconds[0], seconds[2]), 2)
    return values


def summary(names: Sequence[str], values: dict) -> str:
    """One line of the printed table: milliseconds of the file's module, einsum and ours, forward and step."""
    keys = [f"{form}{key}_ms" for key in ("forward", "step") for form in ("public_", "naive_", "")]
    difference = "-" if values["difference"] is None else f"{values['difference']:.0e}"
    return f"{', '.join(names):58}" + "".join(f"{values[key]:9.1f}" for key in keys) + f"{difference:>10}"


HEADING = f"{'':58}" + 2 * f"{'public':>9}{'einsum':>9}{'ours':>9}" + f"{'apart':>10}"
