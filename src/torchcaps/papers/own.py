"""Recipes for one's own pictures: what no flag gives follows from the model and from the pictures."""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import replace

from torchcaps.config import (
    AugmentConfig,
    CoefficientConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimiserConfig,
    ScheduleConfig,
)
from torchcaps.data.facts import DataFacts, data_facts
from torchcaps.fields import with_field
from torchcaps.papers.fitting import SAID, look_at, right_loss
from torchcaps.papers.registry import Finish, recipe

SIDES = (32, 48, 64, 96, 128, 160, 192, 224)  # pixels that pictures of any size are brought to
MOST = 64  # of them for networks made for small images; timm's begin there, since they halve an image five times
SHOWN = 100_000  # images that a run sees, in 10 to 100 epochs
COEFFICIENT_STEP = 2e-4  # see `torchcaps.compare.comparison`
CHOSEN = (
    "loss.name",
    "data.image_size",
    "data.validation",
    "data.augment.shift",
    "epochs",
    "batch_size",
    "optimiser.lr",
    "coefficients.lr",
)


def choose(config: Config, given: Set[str]) -> tuple[Config, str]:
    """Return `config` with what the model and the data ask for where `given`, the fields that flags named, does not
    say.

    The rules: the loss of the routing's paper where the scores of the head allow it; pictures at most as large as they
    are; 100,000 images shown; batches of at most a sixteenth of the pictures; a rate that grows with the root of the
    batch, from pretrained weights a quarter of it; shifts of an eighth of the side.

    Returns:
        the config, and one line that says what was chosen and from what.
    """
    facts, look = data_facts(config.data), look_at(config)
    small, pretrained = not _of_timm(config), bool(config.model.options.get("pretrained"))
    side = _side(config, facts, small)
    held = 0.1 if facts.images >= 500 else 0.2
    share = config.data.fraction * (1 - (config.data.validation if "data.validation" in given else held))
    images = max(1, round(facts.images * share))
    batch = max(1, min(128, images, max(8, 2 ** int(math.log2(max(images / 16, 1))))))
    if "batch_size" in given:
        batch = config.batch_size
    values = {
        "loss.name": right_loss(config, look.scores, facts.single),
        "data.image_size": side,
        "data.validation": held,
        "data.augment.shift": max(1, (side or min(facts.size)) // 8),
        "epochs": max(10, min(100, round(SHOWN / images))) // (4 if pretrained else 1) + config.head_epochs,
        "batch_size": batch,
        "optimiser.lr": float(f"{2e-3 * math.sqrt(batch / 128) / (4 if pretrained else 1):.2g}"),
        "coefficients.lr": COEFFICIENT_STEP,
    }
    for name in CHOSEN:
        if name not in given:
            config = with_field(config, name, values[name])
    kind = SAID[look.scores] if look.scores else "scores of a kind that it does not say"
    height, width = facts.size
    epochs = f"{config.epochs} epoch{'s' * (config.epochs != 1)}"
    return config, (
        f"{config.model.name} gives {kind}: loss {config.loss.name}; {facts.images:,} training pictures of about "
        f"{width}x{height}: image size {config.data.image_size or 'as it is'}, {epochs} in batches of "
        f"{config.batch_size}, rate {config.optimiser.lr:g}, shifts of at most {config.data.augment.shift} pixels"
    )


@recipe(finish=Finish(CHOSEN, choose), selected=True)
def classify() -> Config:
    """Your own pictures by any model: loss, rate, epochs and image size follow from the model and the pictures."""
    return Config(
        model=ModelConfig("small-resnet.dynamic"),
        data=DataConfig("digits", standardise="dataset", augment=AugmentConfig(shift=1, rotate=10, scale=0.1)),
        loss=LossConfig("margin"),
        optimiser=OptimiserConfig("adam", lr=2e-3),
        schedule=ScheduleConfig("one-cycle"),
        coefficients=CoefficientConfig(lr=COEFFICIENT_STEP),
        epochs=30,
    )


def choose_pretrained(config: Config, given: Set[str]) -> tuple[Config, str]:
    """Do as `choose` does, of a timm model whose backbone has pretrained weights, unless an option of it says
    otherwise.

    Raises:
        ValueError: for a model that is not timm's.
    """
    if not _of_timm(config):
        raise ValueError(
            f"model.name is {config.model.name!r}, and has no pretrained weights: tune takes a timm model with a head, "
            "such as resnet18.dynamic; the recipe classify trains any model from its start"
        )
    model = replace(config.model, options={"pretrained": True} | config.model.options)
    config, said = choose(replace(config, model=model), given)
    return config, f"{said}; for {config.head_epochs} epochs the head alone learns"


@recipe(finish=Finish((*CHOSEN, "model.options"), choose_pretrained), selected=True)
def tune() -> Config:
    """Your own pictures by a pretrained timm backbone: first its head learns, then all of it."""
    return replace(
        classify(),
        model=ModelConfig("resnet18.dynamic"),
        optimiser=OptimiserConfig("adamw", lr=5e-4, weight_decay=0.01),
        head_epochs=2,
        epochs=12,
    )


def _side(config: Config, facts: DataFacts, small: bool) -> int | None:
    """Return pixels a side; None where pictures have a size of their own, or are cut or padded to one."""
    if not facts.free or config.data.pad is not None:
        return None
    fitting = [side for side in SIDES if side <= min(facts.size)] or [SIDES[0]]
    return min(fitting[-1], MOST) if small else max(fitting[-1], MOST)


def _of_timm(config: Config) -> bool:
    from torchcaps.models.timm_heads import is_timm

    return is_timm(config.model.name)
