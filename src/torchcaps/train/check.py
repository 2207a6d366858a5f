"""What of a `Config` can be judged before anything is loaded: ranges, and options that contradict each other."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from torchcaps.config import Config
from torchcaps.data.pictures import ground_colour
from torchcaps.fields import read_field

LONGEST = 1000  # characters of a name
LARGEST_SEED = 2**32 - 1  # that NumPy takes, and so Lightning
POSITIVE = (
    "epochs",
    "clip",
    "optimiser.lr",
    "optimiser.eps",
    "coefficients.lr",
    "coefficients.steps",
    "coefficients.weight_steps",
    "schedule.gamma",
)
NOT_NEGATIVE = (
    "seed",
    "data.split_seed",
    "agreement",
    "head_epochs",
    "checkpoint_every",
    "loss.reconstruction",
    "optimiser.weight_decay",
    "schedule.lr_min",
)


def check_config(config: Config) -> None:
    """Raise ValueError for the first value that no run can have; the message says what it may be."""
    for name in POSITIVE:
        value = read_field(config, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value}; it must be {'at least 1' if type(value) is int else 'above 0'}")
    for name in NOT_NEGATIVE:
        value = read_field(config, name)
        assert value is not None, name
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value}; it must be 0 or above")
    if config.seed > LARGEST_SEED:
        raise ValueError(f"seed is {config.seed}; it must be at most {LARGEST_SEED}")
    if config.data.compose.seed is not None and config.data.compose.seed < 0:
        raise ValueError(f"data.compose.seed is {config.data.compose.seed}; it must be 0 or above")
    if config.loss.penalty is not None and not (config.loss.penalty >= 0 and math.isfinite(config.loss.penalty)):
        raise ValueError(f"loss.penalty is {config.loss.penalty}; it must be 0 or above")
    if not 0 <= config.loss.penalty_warmup <= 1:
        raise ValueError(f"loss.penalty_warmup is {config.loss.penalty_warmup}; it is a share of the run, in [0, 1]")
    if not 0 <= config.optimiser.momentum < 1:
        raise ValueError(f"optimiser.momentum is {config.optimiser.momentum}; it must be in [0, 1)")
    if config.loss.name == "binary-cross-entropy" and not 0 < config.loss.threshold < 1:
        raise ValueError(f"loss.threshold is {config.loss.threshold}; it is a probability, above 0 and below 1")
    if config.loss.average and config.loss.name not in ("margin", "spread"):
        raise ValueError(f"loss.average is of the margin and the spread loss; {config.loss.name} has its own mean")
    if not 0 <= config.loss.smoothing < 1 or (config.loss.smoothing and not config.loss.name.endswith("cross-entropy")):
        raise ValueError(
            f"loss.smoothing is {config.loss.smoothing} of the loss {config.loss.name!r}; it is a share in [0, 1), of "
            "cross-entropies only"
        )
    weights = config.loss.class_weights
    if not isinstance(weights, str) and not (
        all(weight >= 0 and math.isfinite(weight) for weight in weights) and any(weights)
    ):
        raise ValueError(f"loss.class_weights is {weights}; it must be 'balanced', or a number of 0 or above a class")
    if not 0 <= config.average < 1:
        raise ValueError(f"average is {config.average}; it is a decay in [0, 1), such as 0.999")
    if config.optimiser.nesterov and (config.optimiser.name != "sgd" or not config.optimiser.momentum):
        raise ValueError("optimiser.nesterov is of SGD with momentum: leave it out, or set optimiser.name to sgd")
    routing = config.coefficients
    if routing.reuse_votes and (routing.steps, routing.weight_steps) != (1, 1):
        raise ValueError(
            f"coefficients.reuse_votes takes one pass for one step of each kind, but coefficients.steps is "
            f"{routing.steps} and coefficients.weight_steps {routing.weight_steps}: set both to 1"
        )
    config.model.check_shape()
    ground_colour(config.data.ground, 3)
    check_shares(config)
    check_names(config)
    if config.schedule.name == "step" and not config.schedule.milestones:
        raise ValueError("schedule.name is 'step', but there are no schedule.milestones: give epochs, e.g. 30 40")
    if config.loss.reconstruction and config.data.standardise != "none":
        raise ValueError(
            f"data.standardise is {config.data.standardise!r}, but a reconstruction (loss.reconstruction "
            f"{config.loss.reconstruction}) predicts pixels in [0, 1]: set it to none"
        )
    check_out(config.out)


def check_shares(config: Config) -> None:
    """Raise ValueError for processes that cannot share a batch equally."""
    if config.processes < 1:
        raise ValueError(f"processes is {config.processes}; it must be at least 1")
    if config.batch_size < 1 or config.batch_size % config.processes:
        raise ValueError(
            f"batch_size is {config.batch_size}; it must be a positive multiple of processes ({config.processes})"
        )


def check_names(config: Config) -> None:
    """Raise ValueError unless the names in `config` are plain: they are shown, and some become names of folders."""
    recipe, model = config.recipe, config.model.name
    if recipe and not (Path(recipe).name == recipe and recipe.isprintable() and len(recipe) <= LONGEST):
        raise ValueError(f"recipe is {recipe[:80]!r}; it names a folder, and must be one plain name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}", model):
        raise ValueError(f"model.name is {model[:80]!r}; it must be one of `torchcaps list models`")
    for name in ("name", "test"):
        value = getattr(config.data, name)
        if value is not None and not (value.isprintable() and len(value) <= LONGEST):
            raise ValueError(f"data.{name} is {value[:80]!r}; it must be a name of `torchcaps list data`, or KIND:PATH")
    for name, form in (("start", r"(.+ [0-9a-f]{64})?"), ("continued", r"(.+ \d{1,9} [0-9a-f]{64})?")):
        value = getattr(config, name)
        if not re.fullmatch(form, value) or not value.isprintable() or len(value) > LONGEST:
            raise ValueError(f"{name} is {value[:80]!r}; it must be the name of a run, its epochs, and a SHA-256")
    for record in config.imports:
        if not re.fullmatch(r".+ [0-9a-f]{64}", record) or not record.isprintable() or len(record) > LONGEST:
            raise ValueError(f"imports holds {record[:80]!r}; it must be the name of a file, and a SHA-256")
    for changed in config.changed:
        if not changed.isprintable() or len(changed) > LONGEST:
            raise ValueError(f"changed holds {changed[:80]!r}; it must be NAME=VALUE")


def check_out(out: Path) -> None:
    """Raise ValueError unless a run may be written to the folder `out`, which need not be there yet."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "may not be written to" if there.is_dir() else "is not a folder"
        raise ValueError(f"out is {out}, but {there} {what}: give another folder with --out")
