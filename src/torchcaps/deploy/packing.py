"""A model whose binary weights are one bit each, in memory and in a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from torchcaps.files import replacing
from torchcaps.manifest import KEY, Manifest, from_json
from torchcaps.models.registry import Model
from torchcaps.models.shapes import check_pictures
from torchcaps.models.smaller import rebuild
from torchcaps.packed import pack

FORMAT, OLDER = "torchcaps-packed-2", "torchcaps-packed-1"  # of which the older has no manifest, but `Model.origin`
SCALES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def save_packed(packed: Model, path: Path, manifest: Manifest, scales: torch.dtype) -> None:
    """Write what `torchcaps.packed.pack` made to the file `path`, which is replaced whole."""
    from safetensors.torch import save_file

    metadata = {"format": FORMAT, KEY: manifest.to_json(), "scales": str(scales).removeprefix("torch.")}
    with replacing(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in _tensors(packed).items()}, temporary, metadata)


def check_scales(scales: torch.dtype) -> None:
    """Raise ValueError unless scales may be of this type."""
    if scales not in SCALES.values():
        raise ValueError(f"scales are {scales}; they must be one of {', '.join(map(str, SCALES.values()))}")


def load_packed(path: str | Path) -> Model:
    """Return the model that `save_packed` wrote, on the CPU, in evaluation mode; its float weights never exist.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is not one of a packed model.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            manifest = read_packed(metadata)
            names = list(file.keys())
            tensors = {name: file.get_tensor(name).clone() for name in names}  # else they keep the file open
        if metadata.get("scales") not in SCALES:
            raise ValueError(f"its scales are {metadata.get('scales')!r}, not one of {', '.join(SCALES)}")
        with torch.device("meta"):
            model = pack(rebuild(manifest), SCALES[metadata["scales"]])
        check_pictures(model, manifest)
        _assign(model, tensors)
    except (KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:  # of torch's layers too
        raise ValueError(f"{path} is not a packed model: {' '.join(str(error).split())}") from error
    model.origin = manifest.origin
    return convert_conv2d_weight_memory_format(model, torch.channels_last)


def read_packed(metadata: Mapping[str, str]) -> Manifest:
    """Return the manifest in the metadata of a file that `save_packed` wrote.

    Raises:
        ValueError: for other files, and for values that cannot be.
    """
    if metadata.get("format") not in (FORMAT, OLDER):
        raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
    key = KEY if metadata["format"] == FORMAT else "origin"
    if key not in metadata:
        raise ValueError(f"its metadata have no {key!r}, which says what its model is")
    return from_json(metadata[key])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers by name, also those buffers that a state dict leaves out."""
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def _assign(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put `tensors` in place of all that `model` holds."""
    there = _tensors(model)
    if there.keys() != tensors.keys():
        raise ValueError(f"the file and its model differ in {sorted(there.keys() ^ tensors.keys())[:3]}")
    for name, tensor in there.items():
        if tensor.dtype != tensors[name].dtype:
            raise ValueError(f"{name} is {tensors[name].dtype}, but the model has {tensor.dtype}")
        if tensor.shape != tensors[name].shape:
            raise ValueError(f"{name} is {list(tensors[name].shape)}, but the model has {list(tensor.shape)}")
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(tensors[name], requires_grad=False)
        else:
            module._buffers[leaf] = tensors[name]
