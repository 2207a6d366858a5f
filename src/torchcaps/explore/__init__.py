"""A page in which a trained network answers: one file that computes in the browser.

The name below is imported on first use.
"""

from typing import TYPE_CHECKING

from torchcaps.lazy import resolver

if TYPE_CHECKING:
    from torchcaps.explore.explore import write_explorer

_HOMES = {"explore": ("write_explorer",)}

__all__ = ["write_explorer"]

__getattr__ = resolver(__name__, _HOMES)
