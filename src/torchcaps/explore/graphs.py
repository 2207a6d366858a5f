"""What a page computes, as ONNX: from an image to scores, capsules and routing, and from poses to images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchcaps.deploy.export import ALLOWED, check_onnx, to_onnx, trace_program
from torchcaps.deploy.module import class_outputs
from torchcaps.inspect.couplings import Box, RoutedLayer, locate_children, watch_routing
from torchcaps.layers import CapsuleLayer
from torchcaps.models import Model, Output
from torchcaps.routing import routing_class
from torchcaps.terminal import warn

LARGEST = 2**29  # bytes of parameters that a page may carry
HEADS = ("scores", "poses", "activations")  # outputs of the network, those that there are
TRACED = ("maps", "strength", "given")  # and of each routed layer, see `RoutedLayer`; its number stands behind


class Layer(NamedTuple):
    """What is fixed about a routed layer."""

    name: str
    routing: str
    iterations: int  # that are shown
    parents: int
    places: tuple[int, int]  # height and width of the grid of its children
    box: Box | None  # None: they have no positions
    strength: str  # what says how strongly a parent is there: its activation or its length
    top: bool  # whether the parents are the classes


class Graphs(NamedTuple):
    """The graphs of a page."""

    network: bytes  # "images" [1, c, h, w] -> those of `outputs`
    outputs: tuple[str, ...]
    decoder: bytes | None  # "poses" [b, j, d], "chosen" int64 [b] -> "pictures" [b, c, h, w] in [0, 1]
    pose: int | None  # elements of a class capsule; None: there are no class capsules
    same: bool  # whether the scores are the activations or lengths of the class capsules
    layers: tuple[Layer, ...]
    absent: dict[str, str]  # "capsules", "decoder", "routing": why the page has no such part
    difference: float | None  # largest, from what torch computes; None where ONNX Runtime is not installed


class _Watched(nn.Module):
    """A network with what its routed layers do, as exporters want it: a tuple of tensors."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return _flat(*watch_routing(self.model, images))


class _Plain(nn.Module):
    """A network without what its routed layers do."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return _flat(self.model(images), [])


class _Decoder(nn.Module):
    """The decoder of a network."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, poses: Tensor, chosen: Tensor) -> Tensor:
        return self.model.reconstruct(poses, chosen)


def make_graphs(model: Model, image: Tensor, decodes: str = "") -> Graphs:
    """Return the graphs of a page of `model`, which is left in evaluation mode.

    What cannot be had is left out, and `Graphs.absent` says why.

    Args:
        model: on the CPU.
        image: [c, h, w], as the model takes it; what is computed of it is compared with torch.
        decodes: why nothing is to be decoded, though there may be a decoder; "" where nothing speaks against it.

    Raises:
        ValueError: where what writes ONNX is not installed, and for a network that is too large for a page.
    """
    size = sum(each.numel() * each.element_size() for each in (*model.parameters(), *model.buffers()))
    if size > LARGEST:
        raise ValueError(f"the network has {size / 2**20:,.0f} MiB: a page can carry {LARGEST // 2**20:,} at most")
    check_onnx()
    images = image.unsqueeze(0)
    with torch.no_grad():
        output, layers = watch_routing(model.eval(), images)
    scores, poses, activations = class_outputs(output)
    absent: dict[str, str] = {}
    outputs = [name for name, each in zip(HEADS, (scores, poses, activations), strict=True) if each is not None]
    if poses is None:
        absent["capsules"] = "This network has no class capsules: it gives a score for each class, and no poses."
    if not layers:
        absent["routing"] = _unrouted(model)
    network, module = _network(model, images, outputs, layers, absent)
    pose = None if poses is None else poses.shape[-1]
    decoder = None if poses is None else _decoder(model, poses, decodes, absent)
    kept = layers if isinstance(module, _Watched) else []
    boxes = locate_children(model, images) if kept else {}
    names = (*outputs, *(f"{part}{n}" for n in range(len(kept)) for part in TRACED))
    return Graphs(
        network,
        names,
        decoder,
        pose,
        poses is not None and _same(scores, poses, activations),
        tuple(_describe(each, boxes.get(each.name)) for each in kept),
        absent,
        _difference(network, module, images),
    )


def _describe(layer: RoutedLayer, box: Box | None) -> Layer:
    steps, _, parents, height, width = layer.maps.shape
    strength = "activation" if routing_class(layer.routing).spec.gives_activations else "length"
    return Layer(layer.name, layer.routing, steps, parents, (height, width), box, strength, layer.top)


def _flat(output: Output, layers: Sequence[RoutedLayer]) -> tuple[Tensor, ...]:
    """Return what there is, in the order of `Graphs.outputs`, without the dimension of the images in what is routed."""
    heads = [each for each in class_outputs(output) if each is not None]
    return (*heads, *(getattr(layer, part)[:, 0] for layer in layers for part in TRACED))


def _network(
    model: Model, images: Tensor, outputs: Sequence[str], layers: Sequence[RoutedLayer], absent: dict[str, str]
) -> tuple[bytes, nn.Module]:
    """Return the graph of the network, with its routing where the exporter can write that, and the module that it is
    of.
    """
    if layers:
        names = [*outputs, *(f"{part}{n}" for n in range(len(layers)) for part in TRACED)]
        watched = _Watched(model)
        try:
            return _onnx(watched, [images], ["images"], names), watched
        except Exception as error:  # of the exporter, which has errors of its own
            absent["routing"] = _refused("couplings", error)
    plain = _Plain(model)
    return _onnx(plain, [images], ["images"], outputs), plain


def _decoder(model: Model, poses: Tensor, decodes: str, absent: dict[str, str]) -> bytes | None:
    """Return the graph of the decoder, for any number of images; None where there is none, which `absent` then says."""
    chosen = torch.zeros(2, dtype=torch.int64)
    try:
        with torch.no_grad():
            model.reconstruct(poses.expand(2, -1, -1), chosen)
    except ValueError:  # as `Model.reconstruct` of a network without one
        decodes = "This network has no decoder, so no image can be painted from a pose."
    if decodes:
        absent["decoder"] = decodes
        return None
    try:
        inputs = [poses.expand(2, -1, -1).contiguous(), chosen]
        return _onnx(_Decoder(model), inputs, ["poses", "chosen"], ["pictures"], batch=True)
    except Exception as error:  # of the exporter
        absent["decoder"] = _refused("decoder", error)
        return None


def _onnx(
    module: nn.Module, inputs: Sequence[Tensor], names: Sequence[str], outputs: Sequence[str], batch: bool = False
) -> bytes:
    return to_onnx(trace_program(module, *inputs, batch=batch), names, outputs).model_proto.SerializeToString()


def _same(scores: Tensor, poses: Tensor, activations: Tensor | None) -> bool:
    return torch.allclose(scores, poses.norm(dim=-1) if activations is None else activations, atol=1e-5)


def _unrouted(model: Model) -> str:
    """Return why there are no couplings to look at."""
    names = sorted({str(each.routing.spec.name) for each in model.modules() if isinstance(each, CapsuleLayer)})
    if not names:
        return "This network routes no capsules, or its layers are packed, and then keep no couplings."
    return f"The routing of this network ({', '.join(names)}) has no couplings that change from image to image."


def _difference(network: bytes, module: nn.Module, images: Tensor) -> float | None:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return None
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": images.numpy()})
    with torch.no_grad():
        wanted = module(images)
    pairs = [(torch.from_numpy(a).double(), b.double()) for a, b in zip(found, wanted, strict=True)]  # pyright: ignore[reportArgumentType]
    differences = torch.stack([(a - b).abs().max() for a, b in pairs])
    difference, largest = differences.max().item(), max(1.0, *(b.abs().max().item() for _, b in pairs))
    if not difference <= ALLOWED[torch.float32] * largest:  # nan is not
        warn(f"the page computes otherwise than its model: outputs differ by up to {difference:.2g}")
    return difference


def _refused(what: str, error: Exception) -> str:
    """Return what the page says of a part that cannot be exported; the whole reason, which may name folders of this
    machine, is said on the terminal.
    """
    warn(f"the {what} cannot be exported: {' '.join(str(error).split())}")
    return f"The {what} of this network cannot be written as ONNX ({type(error).__name__})."
