"""What a capsule has learnt: reconstructions, pose sweeps, where parts go; and the report of a run.

The names below are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchcaps.inspect.couplings import RoutedLayer, share_maps, trace_routing
    from torchcaps.inspect.measured import Measured, calibrate, class_accuracy, confusion, measure, worst
    from torchcaps.inspect.reconstruction import decode_classes, draw_overlaps, draw_reconstructions, pose_sweep
    from torchcaps.inspect.report import write_report
    from torchcaps.inspect.reproduce import reproduce_command

_HOMES = {
    "couplings": ("RoutedLayer", "share_maps", "trace_routing"),
    "measured": ("Measured", "calibrate", "class_accuracy", "confusion", "measure", "worst"),
    "reconstruction": ("decode_classes", "draw_overlaps", "draw_reconstructions", "pose_sweep"),
    "report": ("write_report",),
    "reproduce": ("reproduce_command",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Measured",
    "RoutedLayer",
    "calibrate",
    "class_accuracy",
    "confusion",
    "decode_classes",
    "draw_overlaps",
    "draw_reconstructions",
    "measure",
    "pose_sweep",
    "reproduce_command",
    "share_maps",
    "trace_routing",
    "worst",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
