"""Trained models in use: the classifier that answers for a new picture, by torch or ONNX Runtime.

The names below are imported on first use, and by themselves import no torch.
"""

from typing import TYPE_CHECKING

from torchcaps.lazy import resolver

if TYPE_CHECKING:
    from torchcaps.deploy.classifier import Capsule, Classifier, Prediction
    from torchcaps.deploy.sources import load

_HOMES = {
    "classifier": ("Capsule", "Classifier", "Prediction"),
    "sources": ("load",),
}

__all__ = ["Capsule", "Classifier", "Prediction", "load"]

__getattr__ = resolver(__name__, _HOMES)
