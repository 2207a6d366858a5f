"""The data of a comparison as they are usually taken, and what flags change of that."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from torchcaps.config import AugmentConfig, DataConfig
from torchcaps.data.catalogue import find
from torchcaps.data.facts import data_facts
from torchcaps.fields import read_field, with_field

SIDES = (32, 48, 64)  # pixels that pictures of any size are brought to
NAMED = ("data.name", "data.root", "data.download")  # fields that say which set, and nothing of how it is taken
MIRRORED = ("fashion-mnist", "cifar10", "cifar100")  # sets whose classes a mirror leaves as they are


def usual_data(name: str) -> DataConfig:
    """Return the usual data: shifts of at most 4 pixels, an eighth of CIFAR's side; mirrors where they keep the class;
    pixels standardised.
    """
    return DataConfig(name, standardise="dataset", augment=AugmentConfig(shift=4, flip=name in MIRRORED))


def settle_data(data: DataConfig, given: Set[str]) -> DataConfig | None:
    """Return what is usual for the set that `data` names, with the fields of it that flags gave.

    Pictures of any size are brought to the largest of 32, 48 and 64 pixels a side that they have.

    Args:
        data: with what the flags say.
        given: names of the fields that they gave, such as "data.augment.flip".

    Returns:
        None where nothing but the name and the place of a named set was given.

    Raises:
        FileNotFoundError, ValueError: for data that are not there.
    """
    own = find(data.name)[1] is not None
    others = {name for name in given if name.startswith("data.")} - set(NAMED)
    if not own and not others:
        return None
    settled = usual_data(data.name)
    if own and not others & {"data.image_size", "data.pad", "data.crop"} and (facts := data_facts(data)).free:
        settled = replace(
            settled, image_size=max((side for side in SIDES if side <= min(facts.size)), default=SIDES[0])
        )
    for name in sorted(others):
        within = name.removeprefix("data.")
        settled = with_field(settled, within, read_field(data, within))
    return settled
