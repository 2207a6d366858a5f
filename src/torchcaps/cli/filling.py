"""What commands that fill cells share: where results lie, and jobs done in turn until a signal asks to stop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torchcaps.ranks import given_ranks

if TYPE_CHECKING:
    from torchcaps.tables.fill import Settings
    from torchcaps.tables.plan import Job

RESULTS = Path("results")


def fill(jobs: Sequence[Job], settings: Settings) -> int:
    """Do the jobs, and return how many are left; an interruption says how to go on."""
    from torchcaps.tables.fill import run_all
    from torchcaps.train import Interrupted

    if (ranks := given_ranks()) is not None:
        raise ValueError(
            f"{ranks.by} has started {ranks.world} processes, which would all do the same: start one, or each with a "
            "--part of its own; `torchcaps train` joins them in one run"
        )
    if settings.hours is not None and settings.hours < 0:
        raise ValueError(f"max_hours is {settings.hours}; it must be 0 or above")
    try:
        return run_all(jobs, settings)
    except Interrupted as stop:
        raise Interrupted(f"{stop}; the same command goes on from there") from None
