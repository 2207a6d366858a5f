"""What commands that fill cells share: where results lie, and jobs done in turn until a signal asks to stop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torchcaps.ranks import given_ranks

if TYPE_CHECKING:
    from torchcaps.tables.fill import Outcome, Settings
    from torchcaps.tables.plan import Job

RESULTS = Path("results")


def check_hours(hours: float | None) -> None:
    """Raise ValueError for a time in hours that does not say when to stop."""
    if hours is not None and not hours >= 0:  # NaN is not
        raise ValueError(f"max_hours is {hours}; it must be 0 or above")


def fill(jobs: Sequence[Job], settings: Settings) -> Outcome:
    """Do the jobs, and return what came of them; an interruption says how to go on."""
    from torchcaps.tables.fill import run_all
    from torchcaps.train import Interrupted

    if (ranks := given_ranks()) is not None:
        raise ValueError(
            f"{ranks.by} has started {ranks.world} processes, which would all do the same: start one, or each with a "
            "--part of its own; `torchcaps train` joins them in one run"
        )
    check_hours(settings.hours)
    try:
        return run_all(jobs, settings)
    except Interrupted as stop:
        raise Interrupted(f"{stop}; the same command goes on from there") from None
