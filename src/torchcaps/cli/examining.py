"""`torchcaps examine`: what routing does in a trained network."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from torchcaps.cli import reporting
from torchcaps.config import to_plain
from torchcaps.terminal import note, say


def examine(
    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")],
    split: Literal["train", "validation", "test"] | None = None,
    images: int = 500,
    device: str = "auto",
    out: Path | None = None,
) -> None:
    """Ask what routing does in the model that a run selected, print that as JSON, and add it to the run's report.

    Placebos (one iteration, uniform, random and other images' couplings); how couplings polarise and whether they
    depend on the image; dead and starved capsules; parse trees; negated input; moved images; what poses tell of a move.

    For example: `torchcaps examine runs/classify-0 --images 200`.

    Args:
        run: the folder of a run
        split: whose images are looked at; else the test split of a finished run, the validation split of others
        images: at most, evenly spaced in the split
        device: auto, cpu, cuda, mps
        out: folder that examination.json is written to; else that of the run, whose report is written anew
    """
    from torchcaps.examine.examination import examine_run, write_examination

    found = examine_run(run, split, images, device)
    say(dumps(to_plain(found)))
    note(str(write_examination(found, run if out is None else out)))
    if out is None:
        reporting.report(run)
