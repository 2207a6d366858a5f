"""A model as ONNX Runtime computes it, and what its file says of it. No torch is imported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchcaps.deploy.classifier import Answer
from torchcaps.extras import missing_extra
from torchcaps.manifest import KEY, Manifest, from_json

if TYPE_CHECKING:
    import torch


class OnnxRunner:
    """An exported network, on the CPU.

    Args:
        path: of the file that `torchcaps export` wrote.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when ONNX Runtime is not installed, and when it cannot read the file.
    """

    def __init__(self, path: Path):
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ValueError(missing_extra(error)) from error
        try:
            self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            self.outputs = [each.name for each in self.session.get_outputs()]
            if [each.name for each in self.session.get_inputs()] != ["images"] or "scores" not in self.outputs:
                raise ValueError("it does not lead from 'images' to 'scores'")
        except Exception as error:  # ONNX Runtime has errors of its own
            raise ValueError(f"{path} cannot be read by ONNX Runtime: {' '.join(str(error).split())}") from error
        self.path = path

    @property
    def model(self) -> torch.nn.Module:
        raise ValueError(f"{self.path} is computed by ONNX Runtime, which has no module: load the run for one")

    def manifest(self) -> Manifest:
        """Return what the file says of the model.

        Raises:
            ValueError: when it says nothing, or what cannot be, or what its graph does not take.
        """
        written = self.session.get_modelmeta().custom_metadata_map.get(KEY)
        if written is None:
            raise ValueError(f"{self.path} was not written by torchcaps export: it does not say what its scores are")
        try:
            manifest = from_json(written)
            self._check_input(manifest)
            return manifest
        except ValueError as error:
            raise ValueError(f"{self.path} is damaged, or of a stranger: {error}") from error

    def _check_input(self, manifest: Manifest) -> None:
        """Raise ValueError where the graph does not take the pictures that the manifest says; a side that it leaves
        open takes any.
        """
        if manifest.input is None:
            return
        wanted, taken = (manifest.input.channels, *manifest.input.image_size), self.session.get_inputs()[0].shape[1:]
        if len(taken) != len(wanted) or any(
            isinstance(found, int) and found != side for found, side in zip(taken, wanted, strict=True)
        ):
            raise ValueError(f"its graph takes images of {list(taken)}, but it says {list(wanted)}")

    def __call__(self, images: np.ndarray) -> Answer:
        try:
            given = self.session.run(None, {"images": images})
        except Exception as error:  # ONNX Runtime has errors of its own
            said = " ".join(str(error).split())
            raise ValueError(f"{self.path} cannot compute images of {list(images.shape)}: {said}") from error
        found: Any = dict(zip(self.outputs, given, strict=True))
        return Answer(found["scores"], found.get("poses"), found.get("activations"))
