"""Registered models, one family a file."""

from torchcaps.models import attention, cnn, dynamic, em
from torchcaps.models.capsnet import CapsNet
from torchcaps.models.registry import Model, Output, create_model, list_models, register_model

__all__ = [
    "CapsNet",
    "Model",
    "Output",
    "attention",
    "cnn",
    "create_model",
    "dynamic",
    "em",
    "list_models",
    "register_model",
]
