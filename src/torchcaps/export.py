"""A trained model as it is deployed: ONNX, or with the binary weights of XnODR packed to one bit each.

Each export is read back and compared with the model on random images, so that what is written is known to work.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from torchcaps.deploy.module import class_outputs
from torchcaps.layers import pack
from torchcaps.manifest import KEY, Manifest, from_json
from torchcaps.models.registry import Model, describe_model, rebuild_model

FORMAT, OLDER = "torchcaps-packed-2", "torchcaps-packed-1"  # of which the older has no manifest, but `Model.origin`
OUTPUTS = ["scores", "poses", "activations"]  # of an ONNX file, those that there are
SCALES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Exported(NamedTuple):
    """What was written."""

    path: Path
    bytes: int  # of the file, or of the ONNX file and its data
    difference: float | None  # largest, of what is computed of random images; None where ONNX Runtime is not installed


class _Outputs(nn.Module):
    """A model as exporters want it: images in, the tensors of `class_outputs` out that there are."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(each for each in class_outputs(self.model(images)) if each is not None)


def export_onnx(source: Model | str | Path, path: str | Path, image: tuple[int, int, int] | None = None) -> Exported:
    """Write the model from "images" [b, c, h, w] to "scores" [b, classes] as ONNX, for any batch size.

    Where it has class capsules, their "poses" [b, classes, d] are written too, and their "activations" [b, classes]
    where the routing gives them. `torchcaps.load` reads the file.

    Args:
        source: a model, or the folder of a run, of which the selected weights are taken.
        path: of the file; its folder must exist.
        image: channels, height and width; None: those that the model was created for.

    Raises:
        ValueError: where onnx and onnxscript are not installed, and where `image` is not known.
    """
    (model, manifest), path = _loaded(source), Path(path)
    try:
        import onnxscript  # noqa: F401  # pyright: ignore[reportUnusedImport] - what the exporter needs, said in one line
    except ImportError as error:
        raise ValueError("ONNX export needs two more packages: pip install onnx onnxscript") from error
    module, images = _Outputs(model), _images(model, image)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about its own insides
        batch = ({0: torch.export.Dim.DYNAMIC},)
        program = torch.export.export(module, (images[:2],), dynamic_shapes=batch)
        wanted = module(images)
        names = OUTPUTS[: len(wanted)]
        onnx = torch.onnx.export(program, input_names=["images"], output_names=names, dynamo=True, verbose=False)
        assert onnx is not None
        if manifest is not None:
            onnx.model.metadata_props[KEY] = manifest.to_json()
        onnx.save(path)
    written = sum(each.stat().st_size for each in (path, path.with_name(path.name + ".data")) if each.exists())
    return Exported(path, written, _onnx_difference(path, images, wanted))


def export_packed(
    source: Model | str | Path, path: str | Path, scales: torch.dtype = torch.float32, image: Any = None
) -> Exported:
    """Write a model whose XnODR layers are packed, as one safetensors file that `load_packed` makes a model of.

    Args:
        source, path, image: see `export_onnx`.
        scales: torch.float32, or a half type: scores then differ by the rounding of the scales.

    Raises:
        ValueError: when no layer has binary weights, for other scales, and for a model that `create_model` did not
            build.
    """
    from safetensors.torch import save_file

    if scales not in SCALES.values():
        raise ValueError(f"scales are {scales}; they must be one of {', '.join(map(str, SCALES.values()))}")
    (model, manifest), path = _loaded(source), Path(path)
    if manifest is None:
        raise ValueError("the model was not built by create_model, so its file could not say how to build it again")
    packed = pack(model, scales)
    metadata = {"format": FORMAT, KEY: manifest.to_json(), "scales": str(scales).removeprefix("torch.")}
    temporary = path.with_name(path.name + ".tmp")
    save_file({name: tensor.contiguous() for name, tensor in _tensors(packed).items()}, temporary, metadata)
    os.replace(temporary, path)
    images = _images(model, image)
    with torch.no_grad():
        difference = (load_packed(path)(images).scores - model(images).scores).abs().max().item()
    return Exported(path, path.stat().st_size, difference)


def load_packed(path: str | Path) -> Model:
    """The model that `export_packed` wrote, on the CPU, in evaluation mode; its float weights never exist.

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
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        if metadata.get("scales") not in SCALES:
            raise ValueError(f"its scales are {metadata.get('scales')!r}, not one of {', '.join(SCALES)}")
        with torch.device("meta"):
            model = pack(rebuild_model(manifest.origin), SCALES[metadata["scales"]])
        _assign(model, tensors)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is not a packed model: {error}") from error
    model.origin = manifest.origin
    return convert_conv2d_weight_memory_format(model, torch.channels_last)


def read_packed(metadata: Mapping[str, str]) -> Manifest:
    """The manifest in the metadata of a file that `export_packed` wrote.

    Raises:
        ValueError: for other files, and for values that cannot be.
    """
    if metadata.get("format") not in (FORMAT, OLDER):
        raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
    return from_json(metadata[KEY if metadata["format"] == FORMAT else "origin"])


def _loaded(source: Model | str | Path) -> tuple[Model, Manifest | None]:
    """The model on the CPU, and what is known of it; None of one that `create_model` did not build."""
    if isinstance(source, Model):
        manifest = None if source.origin is None else Manifest(describe_model(source.origin))
        return copy.deepcopy(source).cpu().eval(), manifest
    from torchcaps.train.evaluation import load_run
    from torchcaps.train.run import RunFolder

    return load_run(source)[0], RunFolder(Path(source)).read_manifest()


def _images(model: Model, image: tuple[int, int, int] | None) -> Tensor:
    """Five random images in [0, 1]."""
    if image is None:
        if model.origin is None:
            raise ValueError("image is None, and the model was not built by create_model: give channels, height, width")
        image = (model.origin["in_channels"], *model.origin["image_size"])
    return torch.rand(5, *image, generator=torch.Generator().manual_seed(0))


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, those buffers too that a state dict leaves out."""
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def _assign(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put `tensors` in place of all that `model` holds."""
    there = _tensors(model)
    if there.keys() != tensors.keys():
        raise ValueError(f"the file and its model differ in {sorted(there.keys() ^ tensors.keys())[:3]}")
    for name, tensor in there.items():
        if tensor.shape != tensors[name].shape:
            raise ValueError(f"{name} is {list(tensors[name].shape)}, but the model has {list(tensor.shape)}")
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(tensors[name], requires_grad=False)
        else:
            module._buffers[leaf] = tensors[name]


def _onnx_difference(path: Path, images: Tensor, wanted: Sequence[Tensor]) -> float | None:
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(path))
    found: Any = session.run(None, {"images": images.numpy()})
    return max((torch.from_numpy(a) - b).abs().max().item() for a, b in zip(found, wanted, strict=True))
