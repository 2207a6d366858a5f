"""`torchcaps train RECIPE --help`: the flags that are used most, and the options of the recipe's model.

The model's options are read off its factory, so this help imports torch, where `torchcaps train --help` does not.
`--help-all` shows all flags, which tyro derives from `Config`.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from shutil import get_terminal_size
from textwrap import shorten
from typing import Any

from torchcaps.config import Config, ModelConfig
from torchcaps.names import describe_type
from torchcaps.shell import show_option
from torchcaps.tables.budget_names import ONE_OF

HELP, HELP_ALL = ("-h", "--help"), "--help-all"
BEFORE = {  # flags that are no fields of a config
    "budget": f"{ONE_OF}: for less time",
    "resume": "continue the newest unfinished run",
    "dry-run": "say what is ahead, and stop there",
    "max-minutes": "after which the run is saved and ends",
    "from": "begin with the weights of this run",
    "log": "csv, tensorboard, wandb",
}
COMMON = {  # fields of a config, and what is said of them
    "model.name": "a name from `torchcaps list models`",
    "model.options": "see below, e.g. channels 64 hidden 32,16",
    "data.name": "listed by `torchcaps list data`, or folder:PATH, ...",
    "data.root": "folder of the data sets; else $TORCHCAPS_DATA",
    "data.download": "fetch what is missing",
    "data.image_size": "pixels a side that images are brought to, or height and width",
    "data.validation": "share of training images to select on",
    "data.limit": "images of each split at most: for trials",
    "data.augment.shift": "pixels that images move by at most",
    "data.augment.flip": "mirror left to right",
    "loss.name": "as the model's scores allow",
    "loss.reconstruction": "weight of the squared reconstruction error",
    "loss.smoothing": "cross-entropies: share spread over all classes",
    "loss.class_weights": "balanced, or a number a class",
    "data.balance": "each class is drawn as often as any other",
    "optimiser.name": "adam, adamw, sgd, rmsprop",
    "optimiser.lr": "the largest rate",
    "schedule.name": "constant, step, cosine, one-cycle, ...",
    "epochs": "passes over the training images",
    "batch_size": "images of a step",
    "average": "evaluate a mean of the weights: 0.999, ...",
    "select": "accuracy or mean-class-accuracy",
    "precision": "auto, fp32, bf16, fp16",
    "seed": "of the run",
    "device": "auto, cpu, cuda, mps",
    "out": "folder in which the run's own folder is made",
}


def wants_help(flags: Sequence[str]) -> bool:
    """Return whether `flags` ask for the short help."""
    return any(flag in HELP for flag in flags)


def short_help(config: Config, recipe: str) -> str:
    """Return what `torchcaps train RECIPE --help` says, in lines no wider than the terminal."""
    rows = [(f"--{name}", "", about) for name, about in BEFORE.items()]
    rows += [(f"--{name.replace('_', '-')}", _default(config, name), about) for name, about in COMMON.items()]
    lines = [
        f"usage: torchcaps train {recipe} [FLAGS]",
        f"for example: torchcaps train {recipe} --epochs 3 --optimiser.lr 0.001",
        "",
        "Flags that are used most, and what they are here (--help-all shows all of them):",
        *columns(rows),
        "",
        f"Options of {config.model.name} (--model.options NAME VALUE NAME VALUE ...; (3, 4) is typed 3,4; (3,) 3,):",
        *columns(list_options(config.model)),
    ]
    return "\n".join(lines)


def columns(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """Return rows of three cells as aligned lines, each no wider than the terminal."""
    first, second = (max(len(row[n]) for row in rows) for n in (0, 1))
    width = max(60, get_terminal_size((100, 24)).columns)
    room = max(20, width - min(first, 28) - min(second, 24) - 6)
    return [
        f"  {name:<{min(first, 28)}}  {value:<{min(second, 24)}}  {shorten(about, room, placeholder=' ...')}".rstrip()
        for name, value, about in rows
    ]


def list_options(model: ModelConfig) -> list[tuple[str, str, str]]:
    """Return each option of a model: its name, what it is by default (or by the recipe), and its type.

    Those of its routing stand behind, with "routing_" before their names.

    Raises:
        ValueError: for a model that is not registered.
    """
    from torchcaps.models.registry import describe_model, find_factory
    from torchcaps.revisions import routing_of
    from torchcaps.routing import routing_class

    factory = find_factory(model.name)
    kinds = _kinds(factory)
    routing = routing_of(model)
    if "routing_options" in kinds and routing is not None:
        own = {f"routing_{name}": kind for name, kind in _kinds(routing_class(routing)).items() if name != "sizes"}
        kinds = {name: kind for name, kind in kinds.items() if name != "routing_options"} | own
    values = describe_model({"name": model.name, **model.options})
    shape = ("num_classes", "in_channels", "image_size", "self")
    return [
        (name, show_option(values.get(name)), describe_type(kind)) for name, kind in kinds.items() if name not in shape
    ]


def _kinds(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the arguments of a function or class, and their types."""
    hints = typing.get_type_hints(function.__init__ if isinstance(function, type) else function)
    return {name: hints.get(name, Any) for name in inspect.signature(function).parameters}


def _default(config: Config, name: str) -> str:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    if isinstance(value, dict):
        return "" if not value else "..."
    return "" if value is None or value == () else show_option(value)
