"""A run made smaller: a folder beside it that every command takes, of a network that says the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from torchcaps.deploy.sources import read_run
from torchcaps.files import read_plain, replace_text
from torchcaps.manifest import Manifest
from torchcaps.models import Model
from torchcaps.models.smaller import count_zeros, fold, prune, sizes_of
from torchcaps.train.checkpoint import save_checkpoint
from torchcaps.train.run import RunFolder

KEPT = ("config.json", "environment.json", "metrics.jsonl")  # of the run, as they are


class Smaller(NamedTuple):
    """What was written."""

    folder: Path
    parameters: tuple[int, int]  # before and after
    difference: float  # largest, of scores of random images


def prune_run(path: str | Path, out: str | Path | None = None) -> Smaller:
    """Write a run whose network has no dead child capsules; see `prune`.

    Args:
        path: the folder of a run.
        out: the new folder; None: that of the run with "-pruned" behind its name.

    Raises:
        FileNotFoundError: when `path` is not the folder of a run.
        ValueError: when no capsule is dead, when the network cannot be pruned, and when `out` is there already.
    """

    def change(model: Model, manifest: Manifest) -> tuple[Model, Manifest]:
        pruned = prune(model)
        if not any(each.dead for each in count_zeros(model)):
            raise ValueError(f"no child capsule of {path} is dead: there is nothing to leave out")
        return pruned, replace(manifest, smaller=replace(manifest.smaller, pruned=sizes_of(pruned)))

    return _write(Path(path), out, "-pruned", change)


def fold_run(path: str | Path, out: str | Path | None = None) -> Smaller:
    """Write a run whose constant coefficients stand in the weights; see `fold`.

    Args:
        path, out: see `prune_run`; the name ends in "-folded".

    Raises:
        FileNotFoundError, ValueError: as `prune_run`; when no layer has coefficients.
    """

    def change(model: Model, manifest: Manifest) -> tuple[Model, Manifest]:
        return fold(model), replace(manifest, smaller=replace(manifest.smaller, folded=True))

    return _write(Path(path), out, "-folded", change)


def _write(
    path: Path,
    out: str | Path | None,
    suffix: str,
    change: Callable[[Model, Manifest], tuple[Model, Manifest]],
) -> Smaller:
    run = RunFolder(path)
    known, model = read_run(path)
    small, manifest = change(model, known)
    folder = path.with_name(path.name + suffix) if out is None else Path(out)
    if folder.exists():
        raise ValueError(f"{folder} is there already: give another folder with --out")
    images = torch.rand(5, *_image(manifest), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (small.eval()(images).scores - model(images).scores).abs().max().item()
    folder.mkdir(parents=True)
    for name in KEPT:
        if (path / name).exists():
            replace_text(folder / name, read_plain(path / name))
    written = RunFolder(folder)
    written.write("model.json", manifest.to_plain())
    save_checkpoint(written.best, small, manifest=manifest)
    counts = _parameters(model), _parameters(small)
    if run.finished:
        written.write("result.json", run.read("result.json") | {"parameters": counts[1]})
    return Smaller(folder, counts, difference)


def _image(manifest: Manifest) -> tuple[int, ...]:
    """Return channels, height and width of what the model takes.

    Raises:
        ValueError: where its record lacks them.
    """
    if absent := [name for name in ("in_channels", "image_size") if name not in manifest.model]:
        raise ValueError(f"its record does not say {' and '.join(absent)} of the model")
    return (manifest.model["in_channels"], *manifest.model["image_size"])


def _parameters(model: Model) -> int:
    return sum(each.numel() for each in model.parameters())
