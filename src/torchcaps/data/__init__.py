"""Images with labels, from named sets or the user's own files, as whole batches on the device.

The names below are imported when they are first used, so that `torchcaps.data.catalogue` comes without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchcaps.lazy import resolver

if TYPE_CHECKING:
    from torchcaps.data.batches import Batches
    from torchcaps.data.catalogue import CATALOGUE, data_root, find, list_entries, register
    from torchcaps.data.entry import Entry
    from torchcaps.data.files import ImageFiles
    from torchcaps.data.images import Images, Source
    from torchcaps.data.load import Data, load_data
    from torchcaps.data.overlap import Overlap, Parts
    from torchcaps.data.streams import Stream
    from torchcaps.data.viewpoints import Affine, Shifted

_HOMES = {
    "batches": ("Batches",),
    "catalogue": ("CATALOGUE", "data_root", "find", "list_entries", "register"),
    "entry": ("Entry",),
    "files": ("ImageFiles",),
    "images": ("Images", "Source"),
    "load": ("Data", "load_data"),
    "overlap": ("Overlap", "Parts"),
    "streams": ("Stream",),
    "viewpoints": ("Affine", "Shifted"),
}

__all__ = [
    "CATALOGUE",
    "Affine",
    "Batches",
    "Data",
    "Entry",
    "ImageFiles",
    "Images",
    "Overlap",
    "Parts",
    "Shifted",
    "Source",
    "Stream",
    "data_root",
    "find",
    "list_entries",
    "load_data",
    "register",
]

__getattr__ = resolver(__name__, _HOMES)
