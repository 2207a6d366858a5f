"""What a run begins with beside its config: the weights of another run, or the end of a shorter one of its own kind."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchcaps.config import Config
from torchcaps.data.notes import some
from torchcaps.files import check_plain
from torchcaps.forms import SPLITS
from torchcaps.manifest import DIGESTS, Manifest
from torchcaps.terminal import warn
from torchcaps.train.checkpoint import MODEL, STATE, check_sum, load_state, present, read_weights, save_state_beside
from torchcaps.train.run import RunFolder, create_run, differences, find_unfinished, runs_of


class Start(NamedTuple):
    """Weights that a run begins with."""

    path: Path  # of the run that they are of
    record: str  # its name, and the SHA-256 of the file

    def give(self, model: nn.Module) -> str:
        """Put them into `model`, where names and shapes are its own; returns a sentence that names what stays new.

        Raises:
            ValueError: where no tensor is of the model, and when the checkpoint is damaged.
        """
        weights = read_weights(RunFolder(self.path).selected)
        own = model.state_dict()
        new = take_weights(own, weights)
        if len(new) == len(own):
            raise ValueError(f"{self.path} holds no tensor that has the name and the shape of one of the model")
        if not new:
            return f"the weights are those of {self.path} at first, all {len(own)} tensors of them"
        said = [f"{name} {list(own[name].shape)}{_there(weights.get(name))}" for name in new]
        return f"the weights are those of {self.path} at first, but for {len(new)} of {len(own)} tensors: {some(said)}"


def _there(tensor: Tensor | None) -> str:
    return "" if tensor is None else f" (there {list(tensor.shape)})"


@torch.no_grad()
def take_weights(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """Copy into `own`, a state of a model, those of `weights` of the same name and shape; returns the names of others.

    What shares its memory with a tensor that is taken is taken with it.
    """
    taken = [name for name, tensor in own.items() if name in weights and weights[name].shape == tensor.shape]
    for name in taken:
        own[name].copy_(weights[name])
    memory = {own[name].data_ptr() for name in taken if own[name].numel()}
    others = own.keys() - set(taken)
    return [name for name in own if name in others and not (own[name].numel() and own[name].data_ptr() in memory)]


def find_start(path: str | Path) -> Start:
    """Return the weights that the run in `path` selected, or its last ones where it is unfinished and has selected
    none.

    Raises:
        FileNotFoundError: when it is not the folder of a run, or holds no checkpoint.
        ValueError: when a file of it is damaged, or is none.
    """
    run = RunFolder(Path(path))
    run.read_config()
    check_sum(run.selected / MODEL)
    return Start(run.path, f"{run.path.resolve().name} {_digest(run.selected / MODEL)}")


def open_run(config: Config, resume: bool) -> RunFolder:
    """Return the folder that a run of `config` is written to; with `resume` that of one that goes on.

    That is the newest unfinished run of the config; else a fresh folder that begins where a finished run of fewer
    epochs, and otherwise of the config, has ended. The finished one stays as it is.

    Raises:
        ValueError: when `config.out` cannot be written to, and when there is nothing to resume.
    """
    if not resume:
        return create_run(config)
    try:
        return find_unfinished(config)
    except ValueError:
        shorter = find_shorter(config)
        if shorter is None:
            raise
        return _extend(shorter, config)


def check_images(run: RunFolder, now: Manifest) -> None:
    """Raise ValueError where images and classes are no longer those that `run` has begun with, as far as it says.

    `now` is what the run would say of them today.
    """
    if not (run.path / "model.json").exists():
        return
    before = run.read_manifest()
    if before.classes and before.classes != now.classes:  # an older run does not name them
        raise ValueError(
            f"cannot resume {run.path}: its classes were {', '.join(before.classes)}, and are {', '.join(now.classes)}"
        )
    for split in SPLITS if DIGESTS not in before.missing else ():
        if getattr(before.data, split) != getattr(now.data, split):
            raise ValueError(
                f"cannot resume {run.path}: its {split} images were changed since it began; put them back, "
                "or begin a new run without --resume"
            )


def find_shorter(config: Config) -> RunFolder | None:
    """Return the newest finished run of `config`, but for fewer epochs, that can go on; None where there is none."""
    for run in reversed(runs_of(config)):
        if run.finished and not differences(run.read_config(), config):
            return None  # that is done
        if not run.finished or not (folder := present(run.last)) or not (folder / STATE).exists():
            continue
        there = run.read_config()
        if there.epochs < config.epochs and not differences(there, replace(config, epochs=there.epochs)):
            run.check_revisions()
            return run
    return None


def _extend(shorter: RunFolder, config: Config) -> RunFolder:
    """Return a fresh folder of `config`, with the checkpoints of `shorter`."""
    epochs, state = shorter.read_config().epochs, load_state(shorter.last)
    weights = present(shorter.last)
    assert weights is not None
    check_sum(weights / MODEL)  # the copy gets sums of its own
    name = f"{shorter.path.resolve().name} {epochs} {_digest(weights / MODEL)}"

    def fill(run: RunFolder) -> None:
        for file in ("environment.json", "model.json"):  # as many threads end in the same bits; the images are compared
            run.write(file, shorter.read(file))
        save_state_beside(run.last, weights / MODEL, state | {"epochs": epochs})
        if best := present(shorter.best):
            shutil.copytree(best, run.best)

    run = create_run(replace(config, continued=name), fill)
    warn(
        f"{config.recipe or config.model.name} goes on in {run.path} from the end of {shorter.path}, {epochs} epochs; "
        f"the rate goes on as in a run of {config.epochs}"
    )
    return run


def _digest(path: Path) -> str:
    check_plain(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
