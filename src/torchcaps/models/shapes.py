"""Whether weights are of a model, and what it makes of a picture, before either takes memory: neither a stranger's file
nor his record is believed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchcaps.files import check_plain
from torchcaps.manifest import Manifest
from torchcaps.memory import free_memory
from torchcaps.models.registry import Model

JUDGED = 2**18  # pixels of a picture from which on the memory that it takes is looked at
TIMES, ROOM = 4, 2**26  # that what is made in building a model may be as large as its weights, and bytes beyond that


def read_shapes(weights: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a safetensors file, of which only the head is read.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it is damaged, or no plain file.
    """
    from safetensors import SafetensorError, safe_open

    check_plain(weights)
    try:
        with safe_open(str(weights), "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dictionary
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def check_shapes(build: Callable[[], Model], shapes: Mapping[str, tuple[int, ...]], manifest: Manifest) -> None:
    """Raise ValueError unless the model that `build` builds may take weights of `shapes`; no memory is taken for it.

    So a stranger's model.json cannot ask for any amount, nor for pictures of any size, see `check_pictures`. What can
    only be built with memory, since its code looks at values, may take little more than its weights. Of what cannot be
    built nothing is said: building it does.
    """
    try:
        with torch.device("meta"):
            model = build()
    except (RuntimeError, ValueError):
        model = _build_within(build, TIMES * 4 * sum(map(math.prod, shapes.values())) + ROOM)
    if model is None:
        return
    bare = model.state_dict(keep_vars=True)
    for name, shape in shapes.items():
        if name in bare and bare[name].shape != shape:
            raise ValueError(f"its model has {name} of {list(bare[name].shape)}, but its weights have {list(shape)}")
    kept = {id(bare[name]) for name in shapes if name in bare}
    missing = {name: tensor for name, tensor in bare.items() if id(tensor) not in kept}
    if sum(tensor.numel() for tensor in missing.values()) > sum(map(math.prod, shapes.values())):
        raise ValueError(f"its model has {', '.join(sorted(missing)[:3])}, which its weights have not")
    check_pictures(model, manifest)


def check_pictures(model: Model, manifest: Manifest) -> None:
    """Raise ValueError where what `model`, on the meta device, makes of one picture exceeds the memory.

    Weights need not depend on the size of a picture, so that they say nothing against a size which no memory holds.
    Counted is the largest tensor of a forward pass, in which nothing is computed.
    """
    size, channels = manifest.model.get("image_size"), manifest.model.get("in_channels")
    memory = free_memory()
    if size is None or channels is None or memory is None or math.prod(size) < JUDGED:
        return
    with suppress(RuntimeError, ValueError), torch.device("meta"), torch.no_grad(), _Largest() as seen:
        model.eval()(torch.empty(1, channels, *size))
    if seen.bytes > memory:
        raise ValueError(
            f"image_size is {list(size)}: for one picture of that size its model takes {seen.bytes / 1e9:.3g} GB, and "
            f"there are {memory / 1e9:.3g} GB"
        )


def _build_within(build: Callable[[], Model], limit: int) -> Model | None:
    """Return the model, then moved to the meta device; None where it cannot be built.

    Raises:
        ValueError: where tensors of more than `limit` bytes are made for it.
    """
    made = _Limited(limit)
    try:
        with made:
            return build().to("meta")
    except (RuntimeError, TypeError, ValueError) as error:
        if made.bytes > limit:
            raise ValueError(f"its model takes {made.bytes / 1e9:.3g} GB, which its weights do not") from error
        return None


class _Limited(TorchDispatchMode):
    """Refuses, before it is made, the tensor by which those that were made of none exceed `limit` bytes."""

    def __init__(self, limit: int):
        super().__init__()
        self.limit, self.bytes = limit, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(each, Tensor) for each in tree_leaves((args, kwargs))):
            without = {"device": torch.device("meta"), **dict.fromkeys(kwargs.keys() & {"generator"})}
            made = func(*args, **kwargs | without)
            self.bytes += sum(each.nbytes for each in tree_leaves(made) if isinstance(each, Tensor))
            if self.bytes > self.limit:
                raise ValueError(f"{self.bytes} bytes are more than {self.limit}")
        return func(*args, **kwargs)


class _Largest(TorchDispatchMode):
    """Keeps how many bytes the largest tensor has that is made."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.bytes = max([self.bytes, *(each.nbytes for each in tree_leaves(made) if isinstance(each, Tensor))])
        return made
