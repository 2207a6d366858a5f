"""Modules: transforms, routed layers and stacks of them, primary capsules, decoders."""

from torchcaps.layers.decoders import DenseDecoder, chosen_class
from torchcaps.layers.layer import CapsuleLayer, CapsuleStack, Schedule
from torchcaps.layers.primary import PrimaryCaps
from torchcaps.layers.transforms import ConvTransform, LinearTransform, Transform, flatten_space, pose_shape

__all__ = [
    "CapsuleLayer",
    "CapsuleStack",
    "ConvTransform",
    "DenseDecoder",
    "LinearTransform",
    "PrimaryCaps",
    "Schedule",
    "Transform",
    "chosen_class",
    "flatten_space",
    "pose_shape",
]
