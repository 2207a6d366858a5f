"""Registered models: the networks of one paper in a file or folder, and capsule heads on any network (`*heads.py`)."""

from torchcaps.models import (  # noqa: F401 - they register their names
    efficient_capsnet,
    encapnet,
    fm,
    inverted_attention,
    pretrained,
    self_routing,
    stem_heads,
    timm_heads,
    twin,
    variational_bayes,
)
from torchcaps.models.capsnet import CapsNet
from torchcaps.models.discriminative import discriminative_capsnet
from torchcaps.models.encapnet import Feedback, StagedModel, WithFeedback
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
