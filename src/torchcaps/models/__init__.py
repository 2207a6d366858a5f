"""Registered models, one family a file."""

from torchcaps.models import (  # noqa: F401 - they register their names
    attention,
    cnn,
    dynamic,
    em,
    encapnet,
    encapnet_six,
    fm_capsnet,
    fm_resnet,
    pretrained,
    stem_heads,
    timm_heads,
)
from torchcaps.models.capsnet import CapsNet
from torchcaps.models.discriminative import discriminative_capsnet
from torchcaps.models.feedback import Feedback, WithFeedback
from torchcaps.models.heads import CapsuleHead, DenseHead, HeadedModel
from torchcaps.models.registry import (
    Model,
    Output,
    create_model,
    describe_model,
    list_models,
    rebuild_model,
    register_model,
)
from torchcaps.models.staged import StagedModel

__all__ = [
    "CapsNet",
    "CapsuleHead",
    "DenseHead",
    "Feedback",
    "HeadedModel",
    "Model",
    "Output",
    "StagedModel",
    "WithFeedback",
    "create_model",
    "describe_model",
    "discriminative_capsnet",
    "list_models",
    "rebuild_model",
    "register_model",
]
