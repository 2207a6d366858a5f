"""A classifier from a run, a file or a name. torch is imported for what torch computes, and not before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torchcaps.deploy.classifier import Classifier, Runner
from torchcaps.deploy.onnx import OnnxRunner
from torchcaps.manifest import DIGESTS, Manifest
from torchcaps.terminal import warn

if TYPE_CHECKING:
    from torch import nn

    from torchcaps.models import Model

EXPORTED = (".onnx", ".pt2")


def load(source: str | Path, device: str = "auto", trusted: bool = False, model: nn.Module | None = None) -> Classifier:
    """Return a classifier that answers for pictures, from what training or an export left.

    Args:
        source: the folder of a run, of which the selected weights are taken; a file: `.safetensors` (weights of a run,
            or packed ones), `.onnx`, which ONNX Runtime computes on the CPU without torch, or `.pt2`; or a name of
            weights, `hf-hub:OWNER/NAME` among them, see `torchcaps.models.pretrained.find_weights`.
        device: auto, cpu, cuda or mps.
        trusted: read a `.pt2` file, which may hold code that is run; all others are only read.
        model: the module that `torchcaps.train.fit` was given, of whose run `source` is the folder; None of others.

    Raises:
        FileNotFoundError, OSError: when there is nothing of that name, or it cannot be fetched.
        ValueError: when it is damaged, is of a later version, or lacks what a picture needs to become input.
    """
    path = Path(source)
    if path.suffix in EXPORTED and device not in ("auto", "cpu"):
        raise ValueError(f"device is {device!r}, but {path} is computed on the CPU")
    if path.suffix == ".onnx":
        runner = OnnxRunner(path)
        return build(path, runner.manifest(), runner)
    from torchcaps.deploy.module import ModuleRunner, ProgramRunner

    if path.suffix == ".pt2" and path.is_file():
        if not trusted:
            raise ValueError(f"{path} is a program, and reading it can run code: where it is your own, say trusted")
        program = ProgramRunner(path)
        return build(path, program.manifest(), program)

    manifest, found = read_source(source, model)
    return build(source, manifest, ModuleRunner(found, device))


def build(path: str | Path, manifest: Manifest, runner: Runner) -> Classifier:
    """Return the classifier of what `path` holds; that it lacks the names of the classes is said, and no more."""
    try:
        classifier = Classifier(manifest, runner)
    except ValueError as error:
        raise ValueError(f"{path} cannot answer for a picture: {error}") from error
    if not manifest.classes:
        warn(f"{path} does not say the names of the classes: they are numbers")
    return classifier


def read_source(source: str | Path, module: nn.Module | None = None) -> tuple[Manifest, Model]:
    """Return what a run, a file of weights or a name of weights says of its model, and the model; see `load`."""
    path = Path(source)
    if (path / "config.json").exists():
        return read_run(path, module)
    from torchcaps.models.pretrained import find_weights

    return read_file(find_weights(source))


def read_run(path: Path, module: nn.Module | None = None) -> tuple[Manifest, Model]:
    """Return what the folder of a run says of its model, and the model that it selected; see `load_run`.

    What a run of format 1 lacks is taken from its data, where these are still there.
    """
    from torchcaps.train import RunFolder, load_run
    from torchcaps.train.describe import complete_by_data

    run = RunFolder(path)
    model, config = load_run(path, module)
    manifest = run.read_manifest()
    if manifest.format == 1 and {*manifest.missing} != {DIGESTS}:
        warn(f"{path} is of an older version: it does not say {', '.join(manifest.missing)}")
        manifest = complete_by_data(manifest, config)
    return manifest, model


def read_file(path: Path) -> tuple[Manifest, Model]:
    """Return what a safetensors file says of its model, and the model: weights of a run, or packed ones.

    Raises:
        ValueError: for other files, and for weights that are not of the model that the file describes.
    """
    from safetensors import SafetensorError, safe_open

    from torchcaps.deploy.packing import load_packed, read_packed
    from torchcaps.models.pretrained import read_weights

    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
        packed = read_packed(metadata) if "scales" in metadata else None
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
    return read_weights(path) if packed is None else (packed, load_packed(path))
