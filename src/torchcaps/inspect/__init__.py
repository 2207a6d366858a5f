"""What a capsule has learnt: reconstructions, pose sweeps, where parts go, how votes agree.

The names below, probes of one model, are imported on first use. What a model says of a split is `inspect.measured` and
`inspect.measures`; what pages are drawn with, `inspect.figures` and `inspect.pictures`.
"""

from typing import TYPE_CHECKING

from torchcaps.lazy import resolver

if TYPE_CHECKING:
    from torchcaps.inspect.agreement import Agreement, measure_agreement
    from torchcaps.inspect.couplings import RoutedLayer, share_maps, trace_routing
    from torchcaps.inspect.drawings import (
        draw_agreement,
        draw_inputs_and_outputs,
        draw_overlaps,
        draw_reconstructions,
        draw_segmentations,
    )
    from torchcaps.inspect.jacobian import Singular, measure_jacobian
    from torchcaps.inspect.pairs import AgreedLayer, trace_pairs
    from torchcaps.inspect.probes import AgreementProbe, find_probes
    from torchcaps.inspect.reconstruction import decode_classes, pose_sweep
    from torchcaps.inspect.sparsity import accuracy_by_kept, child_importance
    from torchcaps.inspect.transplants import draw_transplants, transplant

_HOMES = {
    "agreement": ("Agreement", "measure_agreement"),
    "couplings": ("RoutedLayer", "share_maps", "trace_routing"),
    "drawings": (
        "draw_agreement",
        "draw_inputs_and_outputs",
        "draw_overlaps",
        "draw_reconstructions",
        "draw_segmentations",
    ),
    "jacobian": ("Singular", "measure_jacobian"),
    "pairs": ("AgreedLayer", "trace_pairs"),
    "probes": ("AgreementProbe", "find_probes"),
    "reconstruction": ("decode_classes", "pose_sweep"),
    "sparsity": ("accuracy_by_kept", "child_importance"),
    "transplants": ("draw_transplants", "transplant"),
}

__all__ = [
    "AgreedLayer",
    "Agreement",
    "AgreementProbe",
    "RoutedLayer",
    "Singular",
    "accuracy_by_kept",
    "child_importance",
    "decode_classes",
    "draw_agreement",
    "draw_inputs_and_outputs",
    "draw_overlaps",
    "draw_reconstructions",
    "draw_segmentations",
    "draw_transplants",
    "find_probes",
    "measure_agreement",
    "measure_jacobian",
    "pose_sweep",
    "share_maps",
    "trace_pairs",
    "trace_routing",
    "transplant",
]

__getattr__ = resolver(__name__, _HOMES)
