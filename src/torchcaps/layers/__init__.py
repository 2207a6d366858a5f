"""Modules: transforms, routed layers and stacks, primary capsules, decoders."""

from torchcaps.layers.binarize import XnorConv2d
from torchcaps.layers.choice import Choice, choose, chosen_forms, set_forms
from torchcaps.layers.coordinates import Coordinates
from torchcaps.layers.decoders import DenseDecoder, chosen_class
from torchcaps.layers.layer import CapsuleLayer, CapsuleStack, Schedule, evaluating, plain_steps, use_implementation
from torchcaps.layers.primary import PrimaryCapsules, PrimaryPoses
from torchcaps.layers.transforms import (
    ConvTransform,
    LinearTransform,
    PooledTransform,
    Transform,
    flatten_space,
    pose_shape,
)

__all__ = [
    "CapsuleLayer",
    "CapsuleStack",
    "Choice",
    "ConvTransform",
    "Coordinates",
    "DenseDecoder",
    "LinearTransform",
    "PooledTransform",
    "PrimaryCapsules",
    "PrimaryPoses",
    "Schedule",
    "Transform",
    "XnorConv2d",
    "choose",
    "chosen_class",
    "chosen_forms",
    "evaluating",
    "flatten_space",
    "plain_steps",
    "pose_shape",
    "set_forms",
    "use_implementation",
]
