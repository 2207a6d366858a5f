"""All measures of one network, and of the one that a run selected: `torchcaps examine RUN`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from torchcaps.config import from_plain, to_plain
from torchcaps.examine.capsules import measure_layers
from torchcaps.examine.equivariance import measure_equivariance
from torchcaps.examine.found import Examination
from torchcaps.examine.negation import measure_negation
from torchcaps.examine.placebos import coupled_layers, measure_placebos, stacks_of
from torchcaps.examine.robustness import measure_robustness
from torchcaps.examine.sample import Sample, take
from torchcaps.examine.trees import measure_trees
from torchcaps.files import own_folder, read_plain, replace_text
from torchcaps.forms import SplitName
from torchcaps.layers import CapsuleLayer
from torchcaps.models import Model
from torchcaps.names import LARGEST
from torchcaps.train.opened import open_run, usual_split
from torchcaps.train.processes import name_shortage

FILE = "examination.json"
IMAGES = 500
T = TypeVar("T")


def examine(model: Model, sample: Sample, split: str = "test") -> Examination:
    """Return all measures of `model`, left as it was but in evaluation mode; a measure that does not apply says so.

    Raises:
        ValueError: where its scores, or a measure, are not finite, as of a network whose training diverged.
    """
    model.eval()
    answers = _finite_answers(model, sample)
    absent: dict[str, str] = {}
    stacks, coupled = stacks_of(model), coupled_layers(model)
    layers = [each for stack in stacks.values() for each in stack.layers if isinstance(each, CapsuleLayer)]
    routings = sorted({each.routing.spec.name for each in layers})
    unrouted = "the network has no layer of routed capsules"
    uncoupled = f"routing {', '.join(routings)} shares no child out by couplings" if routings else unrouted

    def measure(name: str, why_not: str, function: Callable[[], Sequence[T]], otherwise: str = "") -> tuple[T, ...]:
        found = () if why_not else tuple(function())
        if not found:
            absent[name] = why_not or otherwise
        return found

    right = (answers == sample.targets).all(1).double().mean().item()
    need, route = ("" if coupled else uncoupled), ("" if stacks else unrouted)
    no_class = "its class capsules are not those of a routed layer with couplings"
    found = Examination(
        split,
        len(sample),
        right,
        max(each.iterations for each in stacks.values()) if stacks else None,
        measure("placebos", need, lambda: measure_placebos(model, sample)),
        measure("layers", route, lambda: measure_layers(model, sample)),
        measure("trees", need, lambda: measure_trees(model, sample), no_class),
        measure("negation", route, lambda: measure_negation(model, sample)),
        measure("robustness", "", lambda: measure_robustness(model, sample)),
        measure(
            "equivariance", "", lambda: measure_equivariance(model, sample), "the network has no capsule of each class"
        ),
        absent,
    )
    try:
        _check_numbers(to_plain(found))
    except ValueError as error:
        raise ValueError(f"the examination of the network failed: {error}") from error
    return found


@torch.no_grad()
def _finite_answers(model: Model, sample: Sample) -> Tensor:
    """Return what `model` says of the images, bool [n, classes].

    Raises:
        ValueError: where a score is not finite, which says nothing.
    """
    scores = torch.cat([take(model, images).scores for images, _ in sample.stream()])
    spoilt = int((~scores.isfinite()).any(1).sum())
    if spoilt:
        raise ValueError(
            f"the network's scores of {spoilt:,} of {len(scores):,} images are not finite, of which nothing can be "
            "measured: examine a run whose training did not diverge"
        )
    return sample.predict(scores)


def examine_run(
    path: str | Path,
    split: SplitName | None = None,
    images: int = IMAGES,
    device: str = "auto",
    root: Path | None = None,
) -> Examination:
    """Examine the model that a run selected, on its own data.

    Args:
        path: the folder of the run.
        split: whose images are looked at; None: of a finished run the test split, else the validation split.
        images: at most, evenly spaced in the split.
        device: auto, cpu, cuda or mps.
        root: folder that the data are in, where it is another than they were trained from.

    Raises:
        FileNotFoundError: when `path` is not the folder of a run, or the data are not there.
        ValueError: when the run has no such split, for a number of images below 1, and as `examine`.
        MemoryError: when a batch of the run does not fit into the device's memory.
    """
    model, config, fabric, data = open_run(path, device, root)
    split = split or usual_split(path, data)
    if not len(getattr(data, split)):
        raise ValueError(f"{path} held out no {split} images (data.validation {config.data.validation})")
    sample = Sample(data.evaluation(split, config.batch_size), config.loss, images)
    with name_shortage(config, fabric.device, measured=True):
        fabric.to_device(model)
        return examine(model, sample, split)


def write_examination(found: Examination, folder: Path) -> Path:
    """Write it to `folder` as examination.json, which is returned.

    Raises:
        ValueError: for a number that is not finite, or beyond use, which `read_examination` would not take.
    """
    plain = to_plain(found)
    _check_numbers(plain)
    path = own_folder(folder, make=True) / FILE
    replace_text(path, json.dumps(plain, indent=2, allow_nan=False) + "\n")
    return path


def read_examination(folder: Path) -> Examination | None:
    """Return what stands in a folder's examination.json; None where there is none.

    Raises:
        ValueError: when it is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        plain = json.loads(read_plain(path))
        if not isinstance(plain, dict):
            raise ValueError(f"it holds a {type(plain).__name__}, not an object")
        _check_numbers(plain)
        return check_examination(from_plain(Examination, plain))
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({str(error)[:200]}): take it away, or examine the run anew") from error


def check_examination(found: Examination) -> Examination:
    """Return `found`, whose curves have as many points as values.

    Raises:
        ValueError: where they have not.
    """
    for curve in found.robustness:
        if not len(curve.values) == len(curve.accuracy) == len(curve.kept):
            raise ValueError(f"the curve by {curve.by!r} has not as many points as values")
    return found


def _check_numbers(plain: Any, name: str = "") -> None:
    """Raise ValueError for a number in `plain`, the field `name`, that is not finite, or beyond use."""
    if isinstance(plain, dict | list):
        for key, each in plain.items() if isinstance(plain, dict) else enumerate(plain):
            _check_numbers(each, f"{name}.{key}".strip("."))
    elif isinstance(plain, int | float) and not (math.isfinite(plain) and abs(plain) <= LARGEST):
        raise ValueError(f"{name or 'it'} holds the number {plain}")
