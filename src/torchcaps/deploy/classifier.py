"""A trained model that answers for pictures: files, Pillow's images, arrays or tensors in; classes and capsules out.

Neither torch nor ONNX Runtime is imported here: what computes the scores is a `Runner`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeGuard, overload

import numpy as np

from torchcaps import manifest as manifests
from torchcaps.data.pictures import convert_picture, fit_picture, read_picture
from torchcaps.data.prepare import to_input
from torchcaps.forms import InputForm, ScoreForm
from torchcaps.manifest import Manifest
from torchcaps.memory import free_memory
from torchcaps.names import whole
from torchcaps.scores import shown_classes, to_probabilities

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    Picture = str | PathLike[str] | Image | np.ndarray | torch.Tensor

BATCH = 32  # pictures that are computed at one time


class Answer(NamedTuple):
    """What a runner says of a batch."""

    scores: np.ndarray  # float32 [b, classes]
    poses: np.ndarray | None = None  # float32 [b, classes, d], of the class capsules; None: there are none
    activations: np.ndarray | None = None  # float32 [b, classes]; None: the lengths of the poses


class Runner(Protocol):
    """What computes the scores of images."""

    @property
    def model(self) -> torch.nn.Module:
        """Return the plain module; ValueError where there is none."""
        ...

    def __call__(self, images: np.ndarray) -> Answer:
        """Return the answer for images float32 [b, c, h, w], prepared as the model takes them."""
        ...


class Capsule(NamedTuple):
    """What a class capsule holds."""

    pose: np.ndarray  # float32 [d]
    activation: float  # the length of the pose, where the routing has no activations


@dataclass(frozen=True)
class Prediction:
    """What a picture shows, by a model; numbers are by the names of the classes."""

    label: str  #: the class of the highest score
    probability: float  #: of `label`, in [0, 1]; what it says follows from the loss, see `ScoreForm.reading`. Scores
    #: above 1 that are read as they are, such as activations under the margin loss, become 1 and are no probabilities
    labels: tuple[str, ...]  #: all the classes that are shown, the highest score first: `label` alone, unless pictures
    #: show several; where they differ in how many, those above the threshold, which may be none
    probabilities: dict[str, float]
    scores: dict[str, float]
    capsules: dict[str, Capsule]  #: empty for a network without class capsules

    def top(self, count: int) -> list[tuple[str, float]]:
        """Return the `count` likeliest classes with their probabilities, the highest score first."""
        order = sorted(self.scores, key=lambda name: -self.scores[name])
        return [(name, self.probabilities[name]) for name in order[:count]]


class Classifier:
    """Pictures to `Prediction`: `torchcaps.load` makes one of a run, a file or a name.

    Args:
        manifest: what is known of the model; `manifest.classes` empty: the classes are called "0", "1", ...
        runner: computes the scores.

    Raises:
        ValueError: when the manifest does not say how a picture becomes input, or what the scores are.
    """

    def __init__(self, manifest: Manifest, runner: Runner):
        needed = [each for each in manifest.missing if each not in (manifests.CLASSES, manifests.DIGESTS)]
        if manifest.input is None or manifest.score is None or needed:
            raise ValueError(f"it does not say {', '.join(needed)}")
        check_memory(manifest.input)
        self.most = most_pictures(manifest.input)
        self.manifest = manifest
        self.input: InputForm = manifest.input
        self.score: ScoreForm = manifest.score
        self._runner = runner

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of the scores."""
        return self.manifest.classes or tuple(map(str, range(int(self.manifest.model["num_classes"]))))

    @property
    def model(self) -> torch.nn.Module:
        """Return the plain module, in evaluation mode; ValueError where ONNX Runtime computes."""
        return self._runner.model

    @overload
    def __call__(self, pictures: str | PathLike[str] | Image) -> Prediction: ...
    @overload
    def __call__(self, pictures: Sequence[Picture]) -> list[Prediction]: ...
    @overload
    def __call__(self, pictures: np.ndarray | torch.Tensor) -> Prediction | list[Prediction]: ...
    def __call__(self, pictures: Any) -> Prediction | list[Prediction]:
        """Return what a picture shows, or each of several.

        Args:
            pictures: a path, a Pillow image, an array or a tensor, or a list of these. Arrays are [h, w] or [h, w, c],
                tensors [h, w] or [c, h, w], of uint8 or of floats in [0, 1], which are rounded to 256 levels as those
                of files; of one dimension more they are several pictures. Colours, transparency and size become what
                the model was trained on, as `manifest.input` says.

        Raises:
            ValueError: for a picture that cannot be read, naming it, and for arrays of other types, ranges or shapes.
        """
        if isinstance(pictures, str | PathLike) or _is_image(pictures):
            return self.answer([self.read(pictures)])[0]
        if _is_array(pictures):
            return self.answer([self.read(pictures)])[0] if pictures.ndim < 4 else list(self.predict(iter(pictures)))
        return list(self.predict(pictures if isinstance(pictures, Iterable) else [pictures]))

    def predict(self, pictures: Iterable[Picture], batch: int = BATCH) -> Iterator[Prediction]:
        """Return an iterator over many pictures that gives what each shows; otherwise as a call.

        `batch` of them are computed and held at one time, or fewer where the memory holds no more.

        Raises:
            ValueError: for a `batch` below 1.
        """
        return self._predict(map(self.read, pictures), min(whole("batch", batch), self.most))

    def _predict(self, pixels: Iterator[np.ndarray], batch: int) -> Iterator[Prediction]:
        while several := list(islice(pixels, batch)):
            yield from self.answer(several)

    def read(self, picture: Picture) -> np.ndarray:
        """Return the pixels of one picture as they are before they are standardised: uint8 [c, *input.size]."""
        form = self.input
        if isinstance(picture, str | PathLike):
            pixels = read_picture(picture, form.channels, form.ground)
        elif _is_image(picture):
            pixels = convert_picture(picture, form.channels, form.ground)
        elif _is_array(picture):
            pixels = _read_array(picture, form)
        else:
            raise ValueError(
                f"a {type(picture).__name__} is no picture: give a path, a Pillow image, an array or tensor"
            )
        return fit_picture(pixels, (form.size[0], form.size[1]), form.fit, form.ground)

    def answer(self, pixels: Sequence[np.ndarray]) -> list[Prediction]:
        """Return what pictures show, uint8 [c, h, w] each as `read` gives them."""
        if not pixels:
            return []
        images = to_input(np.stack(pixels), self.input)  # [b, v, c, h, w]
        count, views = images.shape[:2]
        given = self._runner(np.ascontiguousarray(images.reshape(count * views, *images.shape[2:])))
        scores = given.scores.reshape(count, views, -1).mean(1)
        if scores.shape[1] != len(self.classes):
            raise ValueError(f"the model gives {scores.shape[1]} scores, but there are {len(self.classes)} classes")
        probabilities, shown = to_probabilities(scores, self.score), shown_classes(scores, self.score)
        capsules = _capsules(given, self.classes, views)
        return [
            Prediction(
                label=self.classes[best := int(scores[n].argmax())],
                probability=float(probabilities[n, best]),
                labels=tuple(self.classes[label] for label in shown[n]),
                probabilities=dict(zip(self.classes, probabilities[n].tolist(), strict=True)),
                scores=dict(zip(self.classes, scores[n].tolist(), strict=True)),
                capsules=capsules[n],
            )
            for n in range(count)
        ]


def check_memory(form: InputForm) -> None:
    """Raise ValueError where the memory does not hold one picture as a model takes it, in bytes and, in all its views,
    in float32.
    """
    needed, memory = _bytes_of_one(form), free_memory()
    if memory is not None and needed > memory:
        size = "x".join(map(str, reversed(form.image_size)))
        views = f", in {form.views} views," if form.views > 1 else ""
        raise ValueError(
            f"one picture of {size} pixels{views} takes {needed / 1e9:.3g} GB on its way to the model, and there are "
            f"{memory / 1e9:.3g} GB"
        )


def most_pictures(form: InputForm) -> int:
    """Return how many pictures are computed at one time, at least 1, and so many that they take up to half of the
    memory on their way to the model.
    """
    memory = free_memory()
    return sys.maxsize if memory is None else max(1, memory // (2 * _bytes_of_one(form)))


def _bytes_of_one(form: InputForm) -> int:
    sides = max(form.size[0] * form.size[1], (form.pad or 0) ** 2, (form.enlarge or 0) ** 2)
    height, width = form.image_size
    return form.channels * (sides + 4 * max(sides, form.views * height * width))


def _capsules(given: Answer, classes: Sequence[str], views: int) -> list[dict[str, Capsule]]:
    """Return for each picture its class capsules by name; of several views those of the first."""
    if given.poses is None:
        return [{} for _ in range(len(given.scores) // views)]
    poses = given.poses[::views]
    lengths = np.sqrt((poses.astype(np.float64) ** 2).sum(-1))
    activations = lengths if given.activations is None else given.activations[::views]
    return [
        {name: Capsule(pose, float(a)) for name, pose, a in zip(classes, each, active, strict=True)}
        for each, active in zip(poses, activations, strict=True)
    ]


def _read_array(array: Any, form: InputForm) -> np.ndarray:
    """Return the pixels of one picture: uint8 [c, h, w], of as many channels as the model takes."""
    tensor = not isinstance(array, np.ndarray)
    pixels = _levels(_to_numpy(array) if tensor else array)
    shape = "x".join(map(str, pixels.shape))
    order = "channels, height, width" if tensor else "height, width, channels"
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif pixels.ndim == 3:
        pixels = np.moveaxis(pixels, 0, -1) if tensor else pixels
    else:
        raise ValueError(f"{'a tensor' if tensor else 'an array'} of {shape} is no picture: it is read as {order}")
    channels = pixels.shape[-1]
    if form.mode is None and channels == form.channels:
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
    if form.mode is None or channels not in (1, 2, 3, 4) or 0 in pixels.shape:
        takes = form.channels if form.mode is None else "1 to 4"
        raise ValueError(f"{shape} is read as {order}: it has {channels} channels, and the model takes {takes}")
    from PIL.Image import fromarray

    return convert_picture(fromarray(pixels[..., 0] if channels == 1 else pixels), form.channels, form.ground)


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor of any device; bfloat16, which numpy lacks, as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _levels(array: np.ndarray) -> np.ndarray:
    """Return uint8 as it is, floats in [0, 1] rounded to 256 levels."""
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype.kind != "f":
        raise ValueError(f"a picture of {array.dtype} cannot be read: give uint8, or floats in [0, 1]")
    if array.size and not (array.min() >= 0 and array.max() <= 1):  # which no NaN passes
        raise ValueError(f"floats are {array.min():.6g} .. {array.max():.6g}; they must be in [0, 1], not standardised")
    return np.rint(array.astype(np.float64) * 255).astype(np.uint8)


def _is_array(value: object) -> bool:
    """Return whether it is an array of numpy, or a tensor; torch is not imported for it."""
    return isinstance(value, np.ndarray) or (hasattr(value, "detach") and hasattr(value, "ndim"))


def _is_image(value: object) -> TypeGuard[Image]:
    """Return whether it is an image of Pillow, which is not imported for it."""
    return hasattr(value, "getbands") and hasattr(value, "load")
