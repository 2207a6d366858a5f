"""Trained weights by name: in a file or a folder, in the user's cache, in a checkout, or on the Hugging Face hub.

Only safetensors files are read, which can run no code; what a model is stands in their metadata.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch.nn.utils import convert_conv2d_weight_memory_format

import torchcaps
from torchcaps.data.catalogue import cache_root
from torchcaps.denormals import drop_denormals
from torchcaps.extras import missing_extra
from torchcaps.files import check_plain, check_sum, expand_home
from torchcaps.manifest import KEY, Manifest, from_json
from torchcaps.models.registry import Model, register_pretrained
from torchcaps.models.shapes import check_shapes, read_shapes
from torchcaps.models.smaller import rebuild

HUB = "hf-hub:"
FILE = "model.safetensors"
CHECKOUT = Path(torchcaps.__file__).parents[2] / "weights"  # of a checkout; an installed wheel has none
SHIPPED = (  # names of the folders in it
    "attention-cifar10",
    "digits",
    "discriminative-fashion-mnist",
    "encapnet-cifar10",
    "fm-fashion-mnist",
    "xnidr-cifar10",
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REPOSITORY = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95})(?:@([A-Za-z0-9._-]{1,95}))?"
)


def find_weights(source: str | Path) -> Path:
    """Return the file of the weights that `source` names; those of the hub are fetched into its own cache.

    Args:
        source: a safetensors file; a folder with one, such as that of a run, of which the selected weights are taken; a
            name, which is looked for in the user's cache and in the checkout, also where a folder without weights is
            called so; or `hf-hub:OWNER/NAME`, with @REVISION behind it where one is wanted.

    Raises:
        FileNotFoundError: when there is nothing of that name; says where it was looked for.
        ValueError: for an impossible name of the hub, and where huggingface_hub is not installed.
        OSError: when the hub cannot be reached, or has no such weights.
    """
    text, path = str(source), expand_home(source)
    if text.startswith(HUB):
        return fetch(text)
    if path.is_dir():
        inside = [path / part / FILE for part in ("best", "last", "")]
        if found := next((file for file in inside if file.is_file()), None):
            return found
    elif path.exists():
        check_plain(path)
        return path
    places = [cache_root() / "weights" / text / FILE, CHECKOUT / text / FILE]
    if _NAME.fullmatch(text):
        if found := next((file for file in places if file.is_file()), None):
            return found
        if text in SHIPPED and not path.is_dir():
            raise FileNotFoundError(
                f"the weights {text!r} come with a checkout of torchcaps, and not with an installed package: copy "
                f"weights/{text} from there to {places[0].parent}"
            )
    if path.is_dir():
        raise FileNotFoundError(f"{path} holds no weights: there is no {FILE} in it, nor in its best or last")
    there = ", ".join(list_weights()) or "none"
    raise FileNotFoundError(
        f"there is no run, no file and no weights {text!r}: weights by name are {there}; those of the hub are called "
        f"{HUB}OWNER/NAME"
    )


def list_weights() -> list[str]:
    """Return the names of the weights in the user's cache and in the checkout, sorted."""
    places = (cache_root() / "weights", CHECKOUT)
    return sorted({file.parent.name for place in places if place.is_dir() for file in place.glob(f"*/{FILE}")})


def repository(source: str) -> tuple[str, str | None]:
    """Return (OWNER/NAME, revision) of `hf-hub:OWNER/NAME[@REVISION]`; the revision is None where there is none.

    Raises:
        ValueError: for another form.
    """
    found = _REPOSITORY.fullmatch(source.removeprefix(HUB))
    if not source.startswith(HUB) or found is None:
        raise ValueError(
            f"{source[:200]!r} names nothing on the hub: it must be {HUB}OWNER/NAME, or with @REVISION behind"
        )
    return found[1], found[2]


def fetch(source: str) -> Path:
    """Return the file of the weights of `hf-hub:OWNER/NAME`, in the cache of huggingface_hub; raises as
    `find_weights`.
    """
    name, revision = repository(source)
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError as error:
        raise ValueError(missing_extra(error)) from error
    try:
        return Path(hf_hub_download(name, FILE, revision=revision))
    except network_errors() as error:
        raise OSError(f"{source} cannot be fetched: {' '.join(str(error).split())}") from error


def network_errors() -> tuple[type[Exception], ...]:
    """Return the errors that huggingface_hub raises: its own, those of its client of HTTP where a network fails, and of
    the system.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(kind for kind in HfHubHTTPError.__mro__ if issubclass(kind, Exception) and kind is not Exception)


def read_weights(path: Path) -> tuple[Manifest, Model]:
    """Return what a safetensors file says of its model, and the model with these weights, in evaluation mode.

    Raises:
        ValueError: for other files, for weights that are not of the model that the file describes, and where the sums
            beside a `FILE` are not of it.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_model

    try:
        if path.name == FILE:  # the weights of a checkpoint or of a published folder, which may have their sums beside
            check_sum(path)
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
        if KEY not in metadata:
            raise ValueError("it does not say what its model is; give the folder of its run")
        manifest = from_json(metadata[KEY])
        check_shapes(lambda: rebuild(manifest), read_shapes(path), manifest)
        model = convert_conv2d_weight_memory_format(rebuild(manifest), torch.channels_last)
        load_model(model, str(path))
        drop_denormals(model)
    except (RuntimeError, SafetensorError, ValueError) as error:
        raise ValueError(f"{path} cannot be used: {' '.join(str(error).split())}") from error
    return manifest, model.eval()


def create_pretrained(name: str, **wanted: object) -> Model:
    """Return the trained model that `name` finds, see `find_weights`.

    Args:
        name: of weights, not of a model.
        wanted: options, of which each must be that of the model.

    Raises:
        FileNotFoundError, OSError: as `find_weights`.
        ValueError: as `read_weights`, and for an option that the model was not trained with.
    """
    manifest, model = read_weights(find_weights(name))
    for option, value in wanted.items():
        if manifest.model.get(option) != value:
            has = manifest.model.get(option, "no such option")
            raise ValueError(f"{option} is {value!r}, but the trained model {name} has {has}: leave it out")
    return model


register_pretrained(create_pretrained)
