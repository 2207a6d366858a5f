"""Get a run back from its folder, with its data as its model takes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from torchcaps.config import Config, DataConfig
from torchcaps.data import Data, load_data
from torchcaps.data.classes import with_classes
from torchcaps.denormals import drop_denormals
from torchcaps.forms import InputForm, SplitName
from torchcaps.models import Model
from torchcaps.models.shapes import check_shapes, read_shapes
from torchcaps.terminal import warn
from torchcaps.train.checkpoint import MODEL, check_whole, damaged, load_weights
from torchcaps.train.processes import build_measuring
from torchcaps.train.run import RunFolder

MOST = 4_096  # images of a batch in which a run is measured, whatever it was trained in


class Opened(NamedTuple):
    """A run as it is measured: the model that it selected, on the device, and its data as that takes them."""

    model: Model
    config: Config
    fabric: Fabric
    data: Data


def open_run(path: str | Path, device: str = "auto", root: Path | None = None) -> Opened:
    """Return the run in the folder `path` as it is measured on `device`; `root` holds its data, where that is another
    folder than they were trained from.

    Raises:
        FileNotFoundError: when `path` is not the folder of a run, or the data are not there.
        ValueError: when either is damaged, for data that the model cannot take, and for a device that is not there.
    """
    model, config = load_run(path)
    fabric = build_measuring(config, device)
    data = load_data(replace(config.data, root=root or config.data.root), fabric.device)
    return Opened(model, config, fabric, match_data(path, data))


def usual_split(path: str | Path, data: Data) -> SplitName:
    """Return the split whose images a run is looked at on: of a finished run test, else validation, where there is
    none train.
    """
    return "test" if RunFolder(Path(path)).finished else "validation" if len(data.validation) else "train"


def match_data(path: str | Path, data: Data) -> Data:
    """Return `data` as the run in `path` takes them: classes matched by name, mean and std those that it was trained
    with.

    A run of format 1 may not know the names; that they are not matched is said.

    Raises:
        ValueError: when they have a class that the model has not, and when their images have another shape.
    """
    manifest = RunFolder(Path(path)).read_manifest()
    if classes := manifest.classes:
        splits = (data.train, data.validation, data.test)
        try:
            train, validation, test = (with_classes(each, classes) for each in splits)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        data = replace(data, train=train, validation=validation, test=test)
    else:
        warn(f"{path} does not say the names of its classes: those of the data are taken in their order")
    for name, value in (
        ("num_classes", data.num_classes),
        ("in_channels", data.channels),
        ("image_size", data.image_size),
    ):
        if (built := manifest.model.get(name, value)) != value:
            raise ValueError(f"{name} of the data is {value}, but the model of {path} was built for {built}")
    form = manifest.input
    if form is not None and form.mean and form.std:
        data = replace(data, means=form.mean, deviations=form.std)
    return data


def check_sides(data: DataConfig, form: InputForm | None) -> None:
    """Raise ValueError unless `data` bring pictures to the sizes of `form`; none are made that no model takes."""
    if form is None:
        return
    size = data.sides or form.size
    asked = {"image_size": size, "pad": data.pad, "crop": data.crop, "enlarge": data.enlarge}
    for name, value in asked.items():
        taken = form.size if name == "image_size" else getattr(form, name)
        if value != taken:
            raise ValueError(f"data.{name} is {value}, but the model of the run was trained with {taken}")


def load_run(path: str | Path, model: nn.Module | None = None) -> tuple[Model, Config]:
    """Return the model that a run selected, on the CPU and in evaluation mode, and the run's config, for measuring.

    Of an unfinished run it is the best model so far, or the last one before the first epoch has ended. A run that was
    given a module takes it again, as `model`, and loads the weights into it.

    Raises:
        FileNotFoundError: when `path` is not the folder of a run, or holds no checkpoint yet.
        ValueError: when a file of it is damaged, or its weights are not of the model that it describes.
    """
    run = RunFolder(Path(path))
    config = run.read_config()
    config = replace(config, data=replace(config.data, download=False))  # what a run says fetches nothing
    config = replace(config, batch_size=min(config.batch_size, MOST))  # nor has it a split in one batch
    found = run.selected
    check_whole(found / MODEL)
    try:
        shapes = read_shapes(found / MODEL)
    except (OSError, ValueError) as error:
        raise damaged(found / MODEL, error) from error
    manifest = run.read_manifest()
    try:
        if model is None:
            check_shapes(run.rebuild, shapes, manifest)
    except ValueError as error:
        raise damaged(run.path / "model.json", error) from error
    try:
        check_sides(config.data, manifest.input)
    except ValueError as error:
        raise damaged(run.path / "config.json", error) from error
    rebuilt = run.rebuild(model)
    rebuilt = convert_conv2d_weight_memory_format(rebuilt.cpu() if model is not None else rebuilt, torch.channels_last)
    load_weights(found, rebuilt)
    drop_denormals(rebuilt)
    return rebuilt.eval(), config
