"""What a run may begin with beside its config: the weights of another run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchcaps.data.notes import some
from torchcaps.files import digest
from torchcaps.train.checkpoint import MODEL, check_whole, read_weights
from torchcaps.train.run import RunFolder


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
    check_whole(run.selected / MODEL)
    return Start(run.path, f"{run.path.resolve().name} {digest(run.selected / MODEL)}")
