"""What is written beside the weights of a run, so that they can be used without its data; see `torchcaps.manifest`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torchcaps
from torchcaps.config import EXTERNAL, SHAPE, Config, DataConfig, ScoreKind
from torchcaps.data import CATALOGUE, Data, load_data
from torchcaps.data.catalogue import plain_name
from torchcaps.data.given import holds_pictures
from torchcaps.forms import SPLITS, DataForm, InputForm
from torchcaps.losses import score_form
from torchcaps.manifest import Manifest
from torchcaps.models import describe_model
from torchcaps.revisions import revisions_of

LIBRARIES = ("torch", "numpy", "safetensors", "timm")


def make_manifest(config: Config, data: Data, origin: Mapping[str, Any], scores: ScoreKind | None = None) -> Manifest:
    """Return the manifest of a run of `config` on `data`, whose files are read for it.

    `origin` is what `create_model` is called with, and `scores` what the model says that its scores are.
    """
    return Manifest(
        model=dict(origin) if origin["name"] == EXTERNAL else describe_model(origin),
        classes=data.train.classes,
        input=describe_input(data, config.data) if holds_pictures(data.train) else None,
        score=score_form(config.loss, data.shown, scores),
        data=DataForm(plain_name(config.data.name), *(data.digest(split) for split in SPLITS)),
        revisions=revisions_of(config),
        versions=_versions(),
    )


def describe_input(data: Data, config: DataConfig) -> InputForm:
    """Return how a picture becomes what a model takes that was trained on `data`, which were loaded by `config`."""
    read = data.train if config.pad is None or data.read is None else data.read.train
    dataset = data.standardise == "dataset"
    return InputForm(
        size=read.shape[1:],
        channels=data.channels,
        fit=config.fit,
        ground=config.ground,
        pad=config.pad,
        crop=data.crop,
        views=data.views,
        standardise=data.standardise,
        standardise_first=data.standardise_first,
        enlarge=data.enlarge,
        mean=tuple(data.mean.tolist()) if dataset else (),
        std=tuple(data.std.tolist()) if dataset else (),
    )


def complete(manifest: Manifest, config: Config) -> Manifest:
    """Return `manifest` of format 1, and what the config of its run tells of the rest.

    The names of the classes are known of named sets; mean and std of the training images, and digests, are not.
    """
    data, model = config.data, manifest.model
    entry = CATALOGUE.get(data.name)
    compose = entry.compose if entry is not None else None
    shown: int | None = 1
    if compose is not None and (compose.objects or 1) > 1:
        objects, single = (getattr(data.compose, name) for name in ("objects", "single"))
        objects, single = objects or compose.objects, compose.single if single is None else single
        shown = None if single else objects
    size = model.get("image_size")
    if data.sides is not None:
        size = data.sides
    elif data.pad is not None or data.crop is not None or data.enlarge is not None:
        size = entry.image_size if entry is not None else None
    classes = entry.classes if entry is not None else ()
    known = isinstance(size, tuple) and all(name in model for name in SHAPE)
    return replace(
        manifest,
        classes=classes if len(classes) == model.get("num_classes") else (),
        input=InputForm(
            size=size,  # pyright: ignore[reportArgumentType] - checked when it is built
            channels=model["in_channels"],
            fit=data.fit,
            ground=data.ground,
            pad=data.pad,
            crop=data.crop,
            views=data.views,
            standardise=data.standardise,
            standardise_first=data.standardise_first,
            enlarge=data.enlarge,
        )
        if known
        else None,
        score=score_form(config.loss, shown),
        data=DataForm(plain_name(data.name)),
    )


def complete_by_data(manifest: Manifest, config: Config) -> Manifest:
    """Return `manifest` of format 1, and what the data of its run tell of the rest; as it is where they cannot be
    read.
    """
    try:
        data = load_data(config.data)
        return replace(manifest, classes=data.train.classes, input=describe_input(data, config.data))
    except (OSError, ValueError):
        return manifest


def _versions() -> dict[str, str]:
    found = {"torchcaps": torchcaps.__version__}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
