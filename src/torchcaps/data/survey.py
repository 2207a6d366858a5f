"""What the heads of many files say together: size, colour, and what will be changed when they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from torchcaps.config import DataConfig
from torchcaps.data.notes import say
from torchcaps.data.pictures import CONVERTED, Facts, describe_picture, ground_colour, read_picture

if TYPE_CHECKING:
    from torchcaps.data.files import ImageFiles

Listed = Mapping[str, "ImageFiles"]
Surveyed = Mapping[str, list[Facts]]
REMARKS: dict[str, Callable[[Facts], object]] = {  # what is said of the files of which it is so
    "have transparency, and are laid on {ground} (--data.ground)": lambda facts: facts.alpha,
    "have 16 bits a channel, of which the upper eight are kept": lambda facts: facts.deep,
    "have several pages or frames, of which the first is read": lambda facts: facts.pages > 1,
    "are turned as their EXIF orientation says": lambda facts: facts.turned,
    "are in colours of print or television (such as CMYK), and converted to RGB": lambda facts: facts.mode in CONVERTED,
}
FITS = {
    "stretch": "are stretched to it; --data.fit crop or pad keeps proportions",
    "crop": "are cut to their middle",
    "pad": "are put on {ground}",
}


def survey(listed: Listed, skip_unreadable: bool) -> tuple[dict[str, ImageFiles], dict[str, list[Facts]]]:
    """Return what the files of each split say of themselves; with `skip_unreadable` each is decoded once to know
    that it can.

    Raises:
        ValueError: for a file that cannot be read, where those are not left out; when none of a split is left, or
            none of a class that is trained on.
    """
    kept, facts = {}, {}
    for name, files in listed.items():
        found: dict[int, Facts] = {}
        for index, path in enumerate(files.paths):
            try:
                found[index] = describe_picture(path)
                if skip_unreadable:
                    read_picture(path, 1)
            except ValueError as error:
                if not skip_unreadable:
                    raise ValueError(f"{error} (--data.skip-unreadable leaves such images out)") from error
                found.pop(index, None)
        if not found and len(files):
            raise ValueError(f"none of the {len(files)} images beside {files.paths[0]} can be read")
        if bad := [path for index, path in enumerate(files.paths) if index not in found]:
            say(f"left out {len(bad)} unreadable image(s): {', '.join(bad)}")
        kept[name] = files.subset(torch.tensor(list(found), dtype=torch.int64)) if bad else files
        if name == "train" and (lost := sorted(set(_present(files)) - set(_present(kept[name])))):
            raise ValueError(f"none of the training pictures of the class {files.classes[lost[0]]!r} can be read")
        facts[name] = list(found.values())
    return kept, facts


def _present(files: ImageFiles) -> list[int]:
    """Return the classes that some of the files show."""
    labels = files.labels
    return (labels.unique() if labels.ndim == 1 else labels.any(0).nonzero().flatten()).tolist()


def choose_channels(facts: Surveyed, config: DataConfig) -> int:
    """Return 3 where a training picture has colour, 1 where all are grey; or as `config.colour` says."""
    coloured = sum(map(_has_colour(config), facts["train"]))
    if config.colour == "auto" and 0 < coloured < len(facts["train"]):
        grey = len(facts["train"]) - coloured
        say(f"{coloured:,} training pictures have colour and {grey:,} are grey: all are read in colour (--data.colour)")
    return {"auto": 3 if coloured else 1, "grey": 1, "rgb": 3}[config.colour]


def common_size(listed: Listed, facts: Surveyed) -> tuple[int, int]:
    """Return (height, width) of all the images.

    Raises:
        ValueError: when they differ.
    """
    sizes = {path: each.size for name in listed for path, each in zip(listed[name].paths, facts[name], strict=True)}
    first, size = next(iter(sizes.items()))
    for path, (height, width) in sizes.items():
        if (height, width) != size:
            raise ValueError(
                f"{path} is {width}x{height} pixels, {first} is {size[1]}x{size[0]}: "
                "give --data.image-size to resize all images to one size"
            )
    return size


def say_facts(listed: Listed, facts: Surveyed, size: tuple[int, int], config: DataConfig) -> None:
    """Say in the log how many files are changed when they are read, and in what way; each with an example."""
    rows = [(path, each) for name in listed for path, each in zip(listed[name].paths, facts[name], strict=True)]

    def remark(text: str, applies: Callable[[Facts], object]) -> None:
        if paths := [path for path, each in rows if applies(each)]:
            said = text.format(ground=config.ground)
            say(f"{len(paths):,} of {len(rows):,} pictures {said}; such as {paths[0]}")

    for text, applies in REMARKS.items():
        remark(text, applies)
    if config.colour == "auto" and not any(map(_has_colour(config), facts["train"])):
        remark("have colour, and become grey as those of training are (--data.colour)", _has_colour(config))
    proportions = f"have other proportions than {size[1]}x{size[0]}, and {FITS[config.fit]}"
    remark(proportions, lambda each: each.size[0] * size[1] != each.size[1] * size[0])


def _has_colour(config: DataConfig) -> Callable[[Facts], bool]:
    """Return whether a picture has colour, if only that of the ground which shows through it."""
    under = len(set(ground_colour(config.ground, 3))) > 1
    return lambda facts: facts.colour or (facts.alpha and under)
