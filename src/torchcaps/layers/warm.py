"""Kernels compiled ahead of the first step that needs them."""

from __future__ import annotations

import time
from fnmatch import fnmatchcase

import torch

from torchcaps.capsules import Capsules
from torchcaps.layers.layer import CapsuleLayer, CapsuleStack
from torchcaps.layers.transforms import ConvTransform, LinearTransform, Transform
from torchcaps.routing import list_routings

IMAGES = 17  # more than stand side by side in a kernel
TRANSFORMS = (LinearTransform, ConvTransform)


def warm(pattern: str = "*") -> dict[str, float]:
    """Compile the kernels of the routings whose names match `pattern`, as layers of float32 poses take them on a CPU.

    They are kept on disk, for this user and this processor; the sizes of a layer do not matter.

    Args:
        pattern: of names, as a shell has it.

    Returns:
        Seconds by the name of the routing, of those that have kernels; about 0.1 where they were compiled before.
    """
    seconds: dict[str, float] = {}
    for spec in list_routings():
        if not fnmatchcase(spec.name, pattern):
            continue
        begun = time.monotonic()
        if sum(_step(spec.name, kind) for kind in TRANSFORMS):
            seconds[spec.name] = time.monotonic() - begun
    return seconds


def _step(routing: str, kind: type[Transform]) -> bool:
    """Train a tiny layer for a step and ask it for one image; False where no kernel takes it."""
    transform = LinearTransform(4, 2, 4, 16) if kind is LinearTransform else ConvTransform(4, 2, 4, 4)
    try:
        layer = CapsuleLayer(transform, routing, implementation="fused")
    except ValueError:
        return False
    places = () if kind is LinearTransform else (4, 4)
    poses = torch.randn(IMAGES, *places, 4, 4, requires_grad=True)
    activations = torch.rand(IMAGES, *places, 4) if layer.routing.spec.needs_activations else None
    stack = CapsuleStack([layer])
    parents = stack(Capsules(poses, activations))[-1].capsules
    torch.stack([x.sum() for x in parents if x is not None]).sum().backward()
    with torch.no_grad():  # of one image all iterations are another kernel
        stack.eval()(Capsules(poses[:1], None if activations is None else activations[:1]))
    return True
