"""`torchcaps prune` and `torchcaps fold`: a run of a smaller network that says the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional

from torchcaps.terminal import say

if TYPE_CHECKING:
    from torchcaps.deploy.smaller import Smaller


def prune(run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")], out: Path | None = None) -> None:
    """Write a run without the child capsules that reach no parent: those whose coefficients are all exactly zero.

    Such coefficients come of routing towards discriminative quality with proximal steps. Every command takes the run.

    For example: `torchcaps prune runs/mine-0`.

    Args:
        run: the folder of a run
        out: the new folder; else RUN-pruned
    """
    from torchcaps.deploy.smaller import prune_run

    _say(prune_run(run, out))


def fold(run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")], out: Path | None = None) -> None:
    """Write a run whose layers need not route: constant coefficients of discriminative routing stand in the weights.

    Every command takes the run.

    For example: `torchcaps fold runs/mine-0`.

    Args:
        run: the folder of a run
        out: the new folder; else RUN-folded
    """
    from torchcaps.deploy.smaller import fold_run

    _say(fold_run(run, out))


def _say(written: Smaller) -> None:
    before, after = written.parameters
    say(f"{written.folder}: {after:,} parameters, {before:,} before; scores differ by at most {written.difference:.2g}")
