"""A model as torch computes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchcaps.deploy.classifier import Answer
from torchcaps.manifest import KEY, Manifest, from_json
from torchcaps.models import Model, Output

PROGRAM = f"{KEY}.json"  # of an exported program, what it says of itself


class ModuleRunner:
    """A module on its device, in evaluation mode and in its own precision."""

    def __init__(self, model: Model, device: str = "auto"):
        self._device = choose_device(device)
        self._model = model.eval().to(self._device)

    @property
    def model(self) -> Model:
        return self._model

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> Answer:
        held = [each for each in (*self._model.parameters(), *self._model.buffers()) if each.is_floating_point()]
        batch = torch.from_numpy(images).to(held[0] if held else self._device)
        batch = batch.contiguous(memory_format=torch.channels_last)
        output = self._model(batch)
        return Answer(*(None if each is None else each.float().cpu().numpy() for each in class_outputs(output)))  # pyright: ignore[reportArgumentType]


class ProgramRunner:
    """A program of `torch.export`, on the CPU, as `export_pt2` wrote it.

    Reading one can run code, which its file may hold: only a trusted file is to be read.

    Raises:
        ValueError: when it cannot be read.
    """

    def __init__(self, path: Path):
        files = {PROGRAM: ""}
        try:
            self.model = torch.export.load(path, extra_files=files).module()
        except Exception as error:  # of zip, JSON and torch's own
            raise ValueError(f"{path} cannot be read by torch.export: {' '.join(str(error).split())}") from error
        self.path, self.written = path, files[PROGRAM]

    def manifest(self) -> Manifest:
        """Return what the file says of the model.

        Raises:
            ValueError: when it says nothing, or what cannot be.
        """
        try:
            return from_json(self.written)
        except ValueError as error:
            raise ValueError(f"{self.path} does not say what its scores are: {error}") from error

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> Answer:
        return Answer(*(each.numpy() for each in self.model(torch.from_numpy(images))))


def class_outputs(output: Output) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return scores [b, classes], and of the class capsules poses [b, classes, d] and activations [b, classes],
    where any.
    """
    if not output.capsules:
        return output.scores, None, None
    poses, activations = output.capsules[-1]
    if poses.ndim != 3 or poses.shape[:2] != output.scores.shape:
        return output.scores, None, None
    return output.scores, poses, activations


def choose_device(name: str) -> str:
    """Return `name`, or for auto CUDA or MPS where they are there, else the CPU.

    Raises:
        ValueError: for another name, and for a device that is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device, found in there.items() if found)
    if name not in there:
        raise ValueError(f"device is {name!r}; it must be auto, cpu, cuda or mps")
    if not there[name]:
        raise ValueError(f"device is {name!r}, which this machine does not have")
    return name
