"""What of a config follows from its model: the loss, by what the model's scores are, and whether anything is decoded.

torch is imported when a model is looked at, and that is done without memory for its weights.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from typing import NamedTuple

from torchcaps.config import Config, LossName, ScoreKind
from torchcaps.data.catalogue import find
from torchcaps.data.facts import named_classes, named_size
from torchcaps.revisions import routing_of

SIDE = 64  # of the images that a model is looked at with, where nothing says how large they are
SAID = {"length": "lengths of capsules, in [0, 1)", "probability": "activations in [0, 1]", "logit": "logits"}


class Look(NamedTuple):
    """What a model says of itself; None and True where it cannot be built without its data."""

    scores: ScoreKind | None
    decodes: bool


def look_at(config: Config) -> Look:
    """Build the model of `config` without memory for its weights, for images like those of its data.

    Raises:
        ValueError: for a model that is not registered, and for options that are what the data say.
    """
    from torchcaps.models.registry import create_meta, find_factory

    find_factory(config.model.name)
    config.model.check_shape()
    data, (entry, _) = config.data, find(config.data.name)
    try:
        model = create_meta(
            config.model.name,
            num_classes=named_classes(data) or 10,
            in_channels=data.compose.channels or entry.channels or 3,
            image_size=named_size(data) or SIDE,
            **config.model.options,
        )
    except ValueError:  # of options that it lacks, or images that it does not take: said when it is built in earnest
        return Look(None, True)
    return Look(model.scores, getattr(model, "decoder", None) is not None)


def follow_model(recipe: Config, config: Config, given: Set[str]) -> tuple[Config, list[str]]:
    """Return `config`, which flags made of `recipe`, with a loss that its model can be trained with, and what is
    said of it.

    A recipe as it stands is left alone, its loss too, since papers have their own reasons. Where another model was
    named, what its scores do not allow and no flag asked for is replaced: the loss, and a reconstruction where nothing
    decodes.

    Args:
        recipe: as it stands.
        config: with what the flags changed.
        given: names of the fields that flags gave, such as "loss.name".

    Raises:
        ValueError: for a loss by a flag that contradicts the scores of the model; the right one is named.
    """
    if (recipe.model, recipe.loss) == (config.model, config.loss):
        return config, []
    look, said = look_at(config), []
    named = config.model.name != recipe.model.name
    loss = config.loss
    if not fits(loss.name, look.scores) and (named or loss.name != recipe.loss.name or _fitted(recipe)):
        assert look.scores is not None
        right, are = right_loss(config, look.scores), f"the scores of {config.model.name} are {SAID[look.scores]}"
        if "loss.name" in given:
            raise ValueError(f"loss.name is {loss.name!r}, but {are}: take --loss.name {right}")
        said.append(f"{are}: loss {right}")
        smoothing = loss.smoothing if right.endswith("cross-entropy") else 0.0
        loss = replace(loss, name=right, smoothing=smoothing, average=False)
    if named and loss.reconstruction and not look.decodes and "loss.reconstruction" not in given:
        said.append(f"{config.model.name} decodes nothing: loss.reconstruction 0")
        loss = replace(loss, reconstruction=0.0)
    return replace(config, loss=loss), said


def fits(loss: LossName, scores: ScoreKind | None) -> bool:
    """See `torchcaps.losses.takes_scores`, which is imported when it is asked."""
    from torchcaps.losses import takes_scores

    return takes_scores(loss, scores)


def right_loss(config: Config, scores: ScoreKind | None, single: bool | None = None) -> LossName:
    """Return the loss of the paper that the model's routing is from, where scores allow it; else the usual one for
    them.

    `single`: whether each picture shows one class; None: as the data set says.
    """
    from torchcaps.losses import usual_loss
    from torchcaps.routing import routing_class

    if single is None:
        compose = find(config.data.name)[0].compose
        single = compose is None or (config.data.compose.objects or compose.objects or 1) == 1
    routing = routing_of(config.model)
    if routing is not None and single:
        own = routing_class(routing).spec.loss
        if fits(own, scores):
            return own
    return usual_loss(scores, 1 if single else None)


def _fitted(recipe: Config) -> bool:
    """Return whether the recipe's own loss is meant for its own scores."""
    return fits(recipe.loss.name, look_at(recipe).scores)
