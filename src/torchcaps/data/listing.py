"""What `torchcaps data list` says of each set: what it is, its licence and size, its place, and if it is there.

Nothing here imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torchcaps.data.catalogue import absent, list_entries
from torchcaps.data.entry import Entry


@dataclass(frozen=True)
class Listing:
    """What is said of one data set; None where the user's files decide."""

    name: str
    about: str
    classes: int | None  # None where the user's files decide, here and below
    image: tuple[int, int, int] | None  # channels, height, width
    train: int | None  # images
    test: int | None
    megabytes: int  # of the download; 0: nothing is downloaded
    licence: str
    place: str  # where its files are looked for
    there: bool | None
    how: str  # how to get what is not there

    def lines(self) -> Iterator[str]:
        """Yield what people read: the name and what it is, then its size and licence, then its place."""
        yield f"{self.name}: {self.about}"
        if self.image is not None:
            size = f", {self.megabytes:,} MB" if self.megabytes else ""
            images = f"{'x'.join(map(str, self.image))}, {self.train:,} train, {self.test:,} test{size}"
            yield f"    {self.classes} classes, {images}; licence: {self.licence}"
        else:
            yield f"    classes and sizes are those of your files; licence: {self.licence}"
        state = {True: "there", False: f"NOT THERE: {self.how}", None: "as you name it"}[self.there]
        yield f"    {self.place}: {state}"


def list_sets(root: Path) -> list[Listing]:
    """Return all sets of the catalogue, as they are in the data folder `root`."""
    return [_describe(entry, root) for entry in list_entries()]


def _describe(entry: Entry, root: Path) -> Listing:
    if entry.takes_path:
        place, there = entry.name.partition(":")[2], None
    elif not entry.files:
        place, there = "inside torchcaps", True
    else:
        place, there = str(root / _common(entry)), not absent(entry, root)
    lacking = absent(entry, root)
    more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
    get = entry.page or f"torchcaps data show {entry.name} --data.download fetches it{_base(entry)}"
    return Listing(
        name=entry.name,
        about=entry.about,
        classes=len(entry.classes) or None,
        image=None if entry.image_size is None else (entry.channels, *entry.image_size),
        train=entry.train or None,
        test=entry.test or None,
        megabytes=entry.megabytes,
        licence=entry.licence,
        place=place,
        there=there,
        how=f"lacks {lacking[0]}{more}; {get}" if lacking else "",
    )


def _base(entry: Entry) -> str:
    return "" if entry.compose is None else "; or --data.compose.base digits"


def _common(entry: Entry) -> str:
    """Return the folder, or the file, that the entry's files share."""
    names = [group[0] for group in entry.files]
    return names[0] if len(names) == 1 else os.path.commonpath([os.path.dirname(name) or name for name in names])
