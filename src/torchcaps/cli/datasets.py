"""`torchcaps data list | show`."""

from __future__ import annotations

import dataclasses
from json import dumps
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from torchcaps.config import DataConfig
from torchcaps.terminal import say
from torchcaps.usage import bind

DEFAULT_DATA = DataConfig()


def data_list(root: Path | None = None, json: bool = False) -> None:
    """Show what each data set is, its licence and size, where it is looked for, and whether it is there.

    For example: `torchcaps data list --root data`.

    Args:
        root: folder of the data sets; else $TORCHCAPS_DATA, else the user's cache folder
        json: print one JSON array
    """
    from torchcaps.data.catalogue import data_root
    from torchcaps.data.listing import list_sets

    listings = list_sets(data_root(root))
    if json:
        say(dumps([dataclasses.asdict(listing) for listing in listings]))
    else:
        for line in (line for listing in listings for line in listing.lines()):
            say(line)


def data_show(
    name: Annotated[Positional[str], tyro.conf.arg(metavar="NAME")],
    data: DataConfig = DEFAULT_DATA,
    images: int = 10,
    out: Path = Path("sheets"),
) -> None:
    """Write a contact sheet of a data set: images with labels, before and after random changes, as PNG and HTML.

    For example: `torchcaps data show cifar10 --images 5`.

    Args:
        name: a name from `torchcaps data list`
        data: how it is read, and what changes are shown; without any, a few that suit the set
        images: in a row
        out: folder that the two files are written to
    """
    from torchcaps.data.show import write_sheet

    if images < 1:
        raise ValueError(f"images is {images}; it must be at least 1")
    if data.name not in (DEFAULT_DATA.name, name):
        raise ValueError(f"--data.name is {data.name!r}, but NAME is {name!r}: leave --data.name out")
    for path in write_sheet(dataclasses.replace(data, name=name), out, images):
        say(str(path))


DATA_COMMANDS = {"list": data_list, "show": data_show}


def data(
    command: Annotated[Positional[Literal["list", "show"]], tyro.conf.arg(metavar="list|show")],
    flags: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="FLAGS")] = (),
) -> None:
    """List the data sets, or write a contact sheet of one. `torchcaps data show --help` lists its flags.

    For example: `torchcaps data show digits`.

    Args:
        command: what to do
        flags: of that command
    """
    bind(DATA_COMMANDS, (command, *flags), prog="torchcaps data")()
