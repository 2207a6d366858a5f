"""The report that commands write of a run; one that fails takes nothing from the run."""

from __future__ import annotations

from pathlib import Path

from torchcaps.plugins import own_files
from torchcaps.shell import typed
from torchcaps.terminal import note


def report(folder: Path, reason: str = "") -> None:
    """Write the report of a run, and of the `reason` why it ended early, where it did.

    What prevents that takes nothing from the run. It is said of a finished one; of others only the reason is said.
    """
    from torchcaps.report import write_report

    try:
        write_report(folder, reason)
    except Exception as error:
        if reason:
            return
        again = typed(["torchcaps", "inspect", str(folder), *own_files(), "--debug"])
        said = " ".join(str(error).split()) or type(error).__name__
        note(f"torchcaps: {folder} has no report ({said}); to see why: {again}")
