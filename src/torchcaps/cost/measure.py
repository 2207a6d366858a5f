"""Cost of a model, counted while it runs: by torch's counter of FLOPs and by the tensors that autograd keeps."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from torchcaps.cost.operations import count_operations
from torchcaps.layers import plain_steps
from torchcaps.models import Model
from torchcaps.models.heads import Widen
from torchcaps.models.registry import create_meta


@dataclass(frozen=True)
class Cost:
    """Of one image, where it is not of the model alone."""

    parameters: int  #: trainable numbers
    multiply_adds: int  #: of matrix products, convolutions and attention; elementwise operations are not counted
    activation_memory: int  #: bytes held between forward and backward for each image of a batch
    weight_memory: int  #: bytes of parameters and buffers
    operations: int = 0  #: all arithmetic, routing included, as `torchcaps.cost.operations` counts it
    widening_parameters: int = 0  #: of linear layers that only bring features to a whole number of capsules


def measure_cost(model: Model, image_size: int | tuple[int, int] | None = None, channels: int | None = None) -> Cost:
    """Return the cost of `model` on its own device and in its own type, for images of `channels` x `image_size`.

    Multiply-adds are half the FLOPs of a forward pass in evaluation mode. Both they and the operations are those of
    plain steps, see `torchcaps.cost.operations`; memory is that of the model's own implementation. `model` is left as
    it was.

    Args:
        model: it is copied, since a forward pass may change its buffers.
        image_size: side in pixels, or (height, width); None: what the model was made for.
        channels: channels of the images; None likewise, and 1 of a model that does not say.

    Raises:
        ValueError: for None of a model that does not say what it was made for.
    """
    if image_size is None and model.input_shape is None:
        raise ValueError(f"{type(model).__name__} does not say what it was made for: give image_size and channels")
    if model.input_shape is not None:
        made_for, *sides = model.input_shape
        channels = made_for if channels is None else channels
        image_size = (sides[0], sides[1]) if image_size is None else image_size
    assert image_size is not None
    model = copy.deepcopy(model)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    weights, buffers = list(model.parameters()), list(model.buffers())
    dtype = weights[0].dtype if weights else torch.get_default_dtype()  # of a packed network there are buffers only
    device = (weights or buffers or [torch.empty(0)])[0].device
    one, two, four = (
        torch.rand(count, channels or 1, height, width, device=device, dtype=dtype) for count in (1, 2, 4)
    )
    return Cost(
        parameters=sum(weight.numel() for weight in weights if weight.requires_grad),
        multiply_adds=count_multiply_adds(model, one),
        activation_memory=(held_bytes(model, four) - held_bytes(model, two)) // 2,
        weight_memory=sum(tensor.nbytes for tensor in (*weights, *buffers)),
        operations=count_operations(model, one),
        widening_parameters=sum(
            weight.numel() for part in model.modules() if isinstance(part, Widen) for weight in part.parameters()
        ),
    )


def count_cost(name: str, **arguments: Any) -> Cost:
    """Return the cost of a registered model of any size: it is built without memory, and nothing is computed.

    Args:
        name: as `create_model` takes it.
        arguments: of `create_model`; no pretrained weights are fetched.
    """
    with torch.device("meta"):
        return measure_cost(create_meta(name, **arguments))


def count_multiply_adds(model: Model, images: Tensor) -> int:
    """Return the multiply-adds of one forward pass in evaluation mode, in which capsule layers take plain steps."""
    with torch.no_grad(), plain_steps(model), FlopCounterMode(display=False) as counter:
        model.eval()(images)
    return counter.get_total_flops() // 2


def held_bytes(model: Model, images: Tensor) -> int:
    """Return bytes of the distinct storages that autograd holds after a forward pass on `images` in training mode.

    Parameters and constants are among them. The difference between two batches of two images or more is free of both,
    and batch normalisation works on either.
    """
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage()._cdata] = tensor  # alive, so that no other storage gets its address
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(images, torch.zeros(len(images), dtype=torch.int64, device=images.device))
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())
