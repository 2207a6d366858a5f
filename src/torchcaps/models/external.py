"""A user's own module in the place of a registered model."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor, nn

from torchcaps.config import EXTERNAL, ScoreKind
from torchcaps.models.registry import Model, Output


class External(Model):
    """A module from images [b, c, h, w] to scores [b, classes], or to an `Output`, as a `Model`.

    Args:
        module: the user's; it may say what its `scores` are, as models do.
        shape: num_classes, in_channels and image_size.
    """

    def __init__(self, module: nn.Module, shape: dict[str, Any]):
        super().__init__()
        self.module = module
        self.origin = {"name": EXTERNAL, **shape}

    @property
    def scores(self) -> ScoreKind | None:
        said = getattr(self.module, "scores", None)
        return said if said in get_args(ScoreKind) else None

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Output:
        found = self.module(images)
        return found if isinstance(found, Output) else Output(found)


def as_model(module: nn.Module, shape: dict[str, Any]) -> Model:
    """Return `module` itself where it is a `Model`, else one around it; `shape` as `External` takes it."""
    return module if isinstance(module, Model) else External(module, shape)


@torch.no_grad()
def try_out(model: Model, shape: dict[str, Any], device: torch.device) -> Tensor:
    """Return the scores of two images of noise, in evaluation mode; the model is left as it was.

    Raises:
        ValueError: when it does not take images of `shape`, or does not return scores of its classes.
    """
    modes = [(each, each.training) for each in model.modules()]
    images = torch.rand(2, shape["in_channels"], *shape["image_size"], generator=torch.Generator().manual_seed(0))
    inner = model.module if isinstance(model, External) else model
    what = f"{type(inner).__name__}, for images {list(images.shape)}"
    try:
        with torch.random.fork_rng([]):
            scores = model.eval()(images.to(device)).scores
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{what}, fails: {' '.join(str(error).split())}") from error
    finally:
        for each, mode in modes:
            each.training = mode
    wanted = [2, shape["num_classes"]]
    if not isinstance(scores, Tensor) or list(scores.shape) != wanted:
        found = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"{what}, returns {found}; it must return scores {wanted}, one a class, or an Output of them")
    return scores
