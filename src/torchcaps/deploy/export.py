"""A trained model as it is deployed: ONNX, an exported program of torch, or a packed file of XnODR's bits.

What is written computes in float32, whatever the model's own precision. Each export is read back and compared with the
model on random images, so that what is written is known to work, and its time at batch 1 is taken beside the model's.
Layers whose weights are binary are exported with a bit a weight.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from torchcaps.config import EXTERNAL, ScoreKind
from torchcaps.deploy.module import PROGRAM, class_outputs
from torchcaps.deploy.packing import check_scales, load_packed, save_packed
from torchcaps.deploy.sources import read_source
from torchcaps.extras import missing_extra
from torchcaps.files import replace
from torchcaps.forms import InputForm, ScoreForm
from torchcaps.manifest import KEY, Manifest
from torchcaps.models.registry import Model, describe_model
from torchcaps.packed import has_binary_weights, pack
from torchcaps.terminal import warn

OUTPUTS = ["scores", "poses", "activations"]  # of an ONNX file, those that there are
# by the type of its scales: share of the largest output by which a file may compute otherwise before it is said aloud
ALLOWED = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# how scores of a model that does not say its loss become probabilities
READ_AS: dict[ScoreKind, Literal["softmax", "none"]] = {"logit": "softmax", "length": "none", "probability": "none"}
SECONDS, MOST = 0.2, 200  # that the time of one image is taken for, and in how many passes


class Exported(NamedTuple):
    """What was written."""

    path: Path
    bytes: int  # of the file, or of the ONNX file and its data
    difference: float | None  # largest, of what is computed of random images; None where ONNX Runtime is not installed
    milliseconds: float | None  # for one image, here and now: the median of some passes
    torch_milliseconds: float  # the same of the model as torch runs it


class _Outputs(nn.Module):
    """A model as exporters want it: images in, the tensors of `class_outputs` out that there are."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(each for each in class_outputs(self.model(images)) if each is not None)


class _Source(NamedTuple):
    """What is exported."""

    model: Model  # as it was trained, on the CPU, in evaluation mode
    manifest: Manifest
    images: Tensor  # [5, c, h, w], random, in [0, 1]

    def program(self, scales: torch.dtype) -> tuple[torch.export.ExportedProgram, int]:
        """Return the program, for any batch size, in which binary weights are bits; and how many outputs it has."""
        check_scales(scales)
        binary = has_binary_weights(self.model)
        if not binary and scales != torch.float32:
            raise ValueError(f"scales are {scales}, but the model has no binary weights that have any: leave them out")
        module = _Outputs(pack(self.model, scales) if binary else self.model)
        return trace_program(module, self.images[:2]), len(self.wanted())

    @torch.no_grad()
    def wanted(self) -> Sequence[Tensor]:
        """Return what the model computes of the images."""
        return _Outputs(self.model)(self.images)

    def written(
        self, path: Path, run: Callable[[Tensor], Sequence[Tensor]] | None, scales: torch.dtype = torch.float32
    ) -> Exported:
        """Return what was written to `path`, and computes as `run` does; None: nothing can run it here."""
        files = (path, path.with_name(path.name + ".data"))
        one, module = self.images[:1], _Outputs(self.model)
        with torch.no_grad():
            difference = None if run is None else self.compare(path, run(self.images), ALLOWED[scales])
            times = [None if each is None else measure_latency(lambda each=each: each(one)) for each in (run, module)]
        size = sum(each.stat().st_size for each in files if each.exists())
        assert times[1] is not None
        return Exported(path, size, difference, times[0], times[1])

    def compare(self, path: Path, found: Sequence[Tensor], allowed: float) -> float:
        """Return the largest difference from what the model computes; one that rounding does not explain is said."""
        pairs = [(a.double(), b.double()) for a, b in zip(found, self.wanted(), strict=True)]
        differences = torch.stack([(a - b).abs().max() for a, b in pairs])
        largest = torch.stack([b.abs().max() for _, b in pairs]).max().clamp_min(1.0)
        difference = differences.max().item()  # which is nan where any is
        if not difference <= allowed * largest.item():
            warn(
                f"{path} computes otherwise than its model: of random images outputs differ by up to {difference:.2g}, "
                f"where they are at most {largest.item():.2g}; compare predictions before it is relied on"
            )
        return difference


def export_onnx(
    source: Model | str | Path,
    path: str | Path,
    image: tuple[int, int, int] | None = None,
    scales: torch.dtype = torch.float32,
    classes: Sequence[str] = (),
) -> Exported:
    """Write the model from "images" [b, c, h, w] to "scores" [b, classes] as ONNX, for any batch size.

    Where it has class capsules, their "poses" [b, classes, d] are written too, and their "activations" [b, classes]
    where the routing gives them. Binary weights stay bits, which the graph unpacks. `torchcaps.load` reads the file.

    Args:
        source: a model; the folder of a run, of which the selected weights are taken; a file of weights, or a name of
            weights, see `torchcaps.models.pretrained.find_weights`.
        path: of the file; its folder must exist.
        image: channels, height and width; None: those that the model was created for. Of a model that `create_model`
            did not build the file says that pictures become so large, with pixels in [0, 1], and are not standardised.
        scales: type of the scales of binary weights: torch.float32, or a half type, by whose rounding scores differ.
        classes: names, in the order of the scores, of a model that `create_model` did not build; (): numbers.

    Raises:
        FileNotFoundError, OSError: when there is nothing of that name, or it cannot be fetched.
        ValueError: where onnx and onnxscript are not installed, where `image` is not known or is not what the model was
            created for, for other `scales`, and for `classes` of a model that has its own.
    """
    given, path = _loaded(source, image, classes), Path(path)
    check_onnx()
    program, outputs = given.program(scales)
    onnx = to_onnx(program, ["images"], OUTPUTS[:outputs])
    onnx.model.metadata_props[KEY] = given.manifest.to_json()
    with _replacing(path) as fresh:
        onnx.save(fresh)
    return given.written(path, _onnx_session(path), scales)


def check_onnx() -> None:
    """Raise ValueError, which says what to install, where what writes ONNX is missing."""
    try:
        import onnxscript  # noqa: F401  # pyright: ignore[reportUnusedImport] - what the exporter needs, said in one line
    except ModuleNotFoundError as error:
        raise ValueError(missing_extra(error)) from error


def trace_program(module: nn.Module, *inputs: Tensor, batch: bool = True) -> torch.export.ExportedProgram:
    """Return `module`, a function of `inputs` [b, ...], as a program.

    `batch` has it for any b, which then is above 1 in `inputs`.
    """
    any_size = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs) if batch else None
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about its own insides
        program = torch.export.export(module, inputs, dynamic_shapes=any_size)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # which names the folders of this machine
    return program


@contextmanager
def _silent(*names: str) -> Iterator[None]:
    """Have loggers say errors alone: of the exporter, which tells of each constant that it did not fold."""
    loggers = [logging.getLogger(name) for name in names]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)


def to_onnx(
    program: torch.export.ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]
) -> torch.onnx.ONNXProgram:
    """Return a program as ONNX, with these names of its inputs and outputs, in their order; see `check_onnx`."""
    with warnings.catch_warnings(), _silent("onnxscript", "onnx_ir"):
        warnings.simplefilter("ignore")
        onnx = torch.onnx.export(
            program, input_names=list(inputs), output_names=list(outputs), dynamo=True, verbose=False
        )
    assert onnx is not None
    for node in onnx.model.graph.all_nodes():  # how each was traced, half a megabyte in all
        node.metadata_props.clear()
    return onnx


def export_pt2(
    source: Model | str | Path,
    path: str | Path,
    image: tuple[int, int, int] | None = None,
    scales: torch.dtype = torch.float32,
    classes: Sequence[str] = (),
) -> Exported:
    """Write the model as a program of `torch.export`, for any batch size and the CPU.

    It takes and gives what the ONNX of `export_onnx` does. `torchcaps.load` reads the file where it is trusted.

    Args:
        source, path, image, scales, classes: see `export_onnx`.

    Raises:
        ValueError: as `export_onnx`.
    """
    given, path = _loaded(source, image, classes), Path(path)
    program, _ = given.program(scales)
    with warnings.catch_warnings(), _replacing(path) as fresh:
        warnings.simplefilter("ignore")  # of weights that lie channels last, which are saved as they lie
        torch.export.save(program, fresh, extra_files={PROGRAM: given.manifest.to_json()})
    return given.written(path, torch.export.load(path).module(), scales)


def export_packed(
    source: Model | str | Path,
    path: str | Path,
    scales: torch.dtype = torch.float32,
    image: tuple[int, int, int] | None = None,
) -> Exported:
    """Write a model whose XnODR layers are packed, as one safetensors file that `load_packed` makes a model of.

    Args:
        source, path, image, scales: see `export_onnx`.

    Raises:
        ValueError: when no layer has binary weights, for other scales, and for a model that `create_model` did not
            build.
    """
    check_scales(scales)
    if isinstance(source, Model) and _describe(source) is None:
        raise ValueError("the model was not built by create_model, so its file could not say how to build it again")
    given, path = _loaded(source, image), Path(path)
    try:
        packed = pack(given.model, scales)
    except ValueError as error:
        raise error if isinstance(source, Model) else ValueError(f"{source}: {error}") from error
    save_packed(packed, path, given.manifest, scales)
    return given.written(path, _Outputs(load_packed(path)), scales)


def measure_latency(run: Callable[[], object]) -> float:
    """Return the milliseconds that `run` takes: the median of passes for a fifth of a second, after one that is not
    counted.
    """
    run()
    taken: list[float] = []
    while sum(taken) < SECONDS and len(taken) < MOST:
        begin = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begin)
    return 1000 * median(taken)


def _loaded(source: Model | str | Path, image: tuple[int, int, int] | None, classes: Sequence[str] = ()) -> _Source:
    if isinstance(source, Model):
        model = copy.deepcopy(source).deployed().cpu().float().eval()
        manifest = _describe(model)
    else:
        manifest, model = read_source(source)
    if manifest is not None and classes:
        raise ValueError("classes are of a model that create_model did not build: leave them out, its run names them")
    created = model.input_shape if manifest is None else _shape_of(manifest)
    image = created if image is None else image
    if image is None:
        raise ValueError(
            "image is None, and the model was not built by create_model and does not say what it was made for: give "
            "channels, height, width"
        )
    if manifest is not None and created not in (None, tuple(image)):
        raise ValueError(f"image is {list(image)}, but the model was created for {list(created)}: leave it out")
    images = torch.rand(5, *image, generator=torch.Generator().manual_seed(0))
    return _Source(model, _describe_own(model, images, classes) if manifest is None else manifest, images)


def _shape_of(manifest: Manifest) -> tuple[int, int, int] | None:
    """Return channels, height and width of what the model takes; None where its record lacks them."""
    if not {"in_channels", "image_size"} <= manifest.model.keys():
        return None
    return (manifest.model["in_channels"], *manifest.model["image_size"])


def _describe(model: Model) -> Manifest | None:
    """Return how to build `model` again; None where `create_model` did not build it."""
    origin = model.origin
    return None if origin is None or origin["name"] == EXTERNAL else Manifest(describe_model(origin))


@torch.no_grad()
def _describe_own(model: Model, images: Tensor, classes: Sequence[str]) -> Manifest:
    """Return what is needed to use an export of a model that nothing can build again: the sizes of the `images` that it
    takes, the names of its classes, and what it says that its scores are.
    """
    channels, *size = images.shape[1:]
    shape = {"num_classes": model(images).scores.shape[1], "in_channels": channels, "image_size": tuple(size)}
    score = None if model.scores is None else ScoreForm(model.scores, READ_AS[model.scores])
    return Manifest({"name": EXTERNAL, **shape}, tuple(classes), InputForm(tuple(size), channels), score)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Return a path of the same name in a fresh folder: what the block writes there and beside it takes its place at
    last.

    So nothing is written through a link that stands at `path`, which may be in the folder of a stranger's run.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        yield Path(folder, path.name)
        for written in Path(folder).iterdir():
            replace(written, path.with_name(written.name))


def _onnx_session(path: Path) -> Callable[[Tensor], Sequence[Tensor]] | None:
    """Return what ONNX Runtime computes; None where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        found: Any = session.run(None, {"images": images.numpy()})
        return [torch.from_numpy(each) for each in found]

    return run
