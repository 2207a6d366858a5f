"""What a layer refuses of its children before any loop reads their memory."""

from __future__ import annotations

from torch import Tensor

from torchcaps.capsules import Capsules

FORMS = "[b, i, d], or with positions [b, t, i, d] or [b, h, w, i, d]"  # of poses


def check_capsules(children: object) -> None:
    """Raise TypeError for what is no `Capsules` of tensors, ValueError where activations are not one a capsule."""
    if not isinstance(children, Capsules):
        raise TypeError(f"the children are a {type(children).__name__}; they must be Capsules(poses), poses {FORMS}")
    poses, activations = children
    for what, value in (("poses", poses), ("activations", activations)):
        if not isinstance(value, Tensor) and not (value is None and what == "activations"):
            raise TypeError(f"{what} are a {type(value).__name__}; they must be a torch.Tensor, as torch.tensor makes")
    if poses.ndim < 3:
        raise ValueError(f"poses are {list(poses.shape)}; they must be {FORMS}")
    if activations is not None:
        check_activations(poses, activations)


def check_activations(poses: Tensor, activations: Tensor) -> None:
    """Raise ValueError unless `activations` [b, ..., i] are floating, on the device of `poses` [b, ..., i, d]."""
    if activations.shape != poses.shape[:-1]:
        found, wanted = list(activations.shape), list(poses.shape[:-1])
        raise ValueError(f"activations are {found}; they must be {wanted}, poses.shape[:-1], one a capsule")
    if not activations.is_floating_point():
        raise ValueError(f"activations are {activations.dtype}; they must be floating, as poses are: {poses.dtype}")
    if activations.device != poses.device:
        raise ValueError(f"activations are on {activations.device}, but poses on {poses.device}: move one of the two")
