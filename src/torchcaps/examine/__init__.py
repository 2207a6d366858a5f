"""What routing does in a trained network: placebos, how couplings polarise, parse trees, negation, moved images, poses.

The names below are imported on first use.
"""

from typing import TYPE_CHECKING

from torchcaps.lazy import resolver

if TYPE_CHECKING:
    from torchcaps.examine.capsules import measure_layers
    from torchcaps.examine.equivariance import measure_equivariance
    from torchcaps.examine.examination import examine_run, read_examination, write_examination
    from torchcaps.examine.found import Examination
    from torchcaps.examine.negation import measure_negation
    from torchcaps.examine.placebos import coupled, measure_placebos
    from torchcaps.examine.robustness import measure_robustness
    from torchcaps.examine.sample import Sample
    from torchcaps.examine.trees import measure_trees

_HOMES = {
    "capsules": ("measure_layers",),
    "equivariance": ("measure_equivariance",),
    "examination": ("examine_run", "read_examination", "write_examination"),
    "found": ("Examination",),
    "negation": ("measure_negation",),
    "placebos": ("coupled", "measure_placebos"),
    "robustness": ("measure_robustness",),
    "sample": ("Sample",),
    "trees": ("measure_trees",),
}

__all__ = [
    "Examination",
    "Sample",
    "coupled",
    "examine_run",
    "measure_equivariance",
    "measure_layers",
    "measure_negation",
    "measure_placebos",
    "measure_robustness",
    "measure_trees",
    "read_examination",
    "write_examination",
]

__getattr__ = resolver(__name__, _HOMES)
