"""Registered models, one family a file."""

from torchcaps.models import attention, cnn, dynamic, em, fm_capsnet, fm_resnet, timm_heads
from torchcaps.models.capsnet import CapsNet
from torchcaps.models.discriminative import discriminative_capsnet
from torchcaps.models.heads import CapsuleHead, DenseHead, HeadedModel
from torchcaps.models.registry import Model, Output, create_model, list_models, register_model

__all__ = [
    "CapsNet",
    "CapsuleHead",
    "DenseHead",
    "HeadedModel",
    "Model",
    "Output",
    "attention",
    "cnn",
    "create_model",
    "discriminative_capsnet",
    "dynamic",
    "em",
    "fm_capsnet",
    "fm_resnet",
    "list_models",
    "register_model",
    "timm_heads",
]
