"""The page of a run, and the command that does the run again.

The names below are imported on first use.
"""

from typing import TYPE_CHECKING

from torchcaps.lazy import resolver

if TYPE_CHECKING:
    from torchcaps.report.report import ReportKept, write_report
    from torchcaps.report.reproduce import reproduce_command

_HOMES = {"report": ("ReportKept", "write_report"), "reproduce": ("reproduce_command",)}

__all__ = ["ReportKept", "reproduce_command", "write_report"]

__getattr__ = resolver(__name__, _HOMES)
