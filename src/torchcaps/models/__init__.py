"""Registered models, one family a file."""

from torchcaps.models.capsnet import CapsNet
from torchcaps.models.discriminative import discriminative_capsnet
from torchcaps.models.registry import Model, Output, create_model, list_models, register_model

__all__ = [
    "CapsNet",
    "Model",
    "Output",
    "create_model",
    "discriminative_capsnet",
    "list_models",
    "register_model",
]
