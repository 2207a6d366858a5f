"""`torchcaps evaluate | inspect`: what a run has learnt, in numbers and as a report."""

from __future__ import annotations

import dataclasses
from json import dumps
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from torchcaps.cli.flags import given_fields
from torchcaps.config import DataConfig
from torchcaps.terminal import note, say
from torchcaps.usage import usage_errors


@dataclasses.dataclass(frozen=True)
class EvaluateFlags:
    """What is measured, and how it is said."""

    data: DataConfig  #: other data than the run's: its classes are matched by name
    #: the images to measure on; else test, and of other data without a test split of their own all
    split: Literal["test", "validation", "train", "all"] | None = None
    device: str = "auto"  #: auto, cpu, cuda, mps
    json: bool = False  #: print one JSON object, with accuracy by class, confusion, top-k and calibration
    out: Path | None = None  #: folder to write the same to, as JSON and CSV


def evaluate(
    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")],
    flags: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="FLAGS")] = (),
) -> None:
    """Measure the model that a run selected. `torchcaps evaluate RUN --help` lists the flags.

    For example: `torchcaps evaluate runs/classify-0 --split validation`.

    Args:
        run: the folder of a run
        flags: e.g. --split validation, --json, or other data: --data.name folder:PATH
    """
    from torchcaps.train import RunFolder

    data = dataclasses.replace(RunFolder(Path(run)).read_config().data, download=False)  # unless a flag says so
    with usage_errors():
        asked = tyro.cli(
            EvaluateFlags,
            prog=f"torchcaps evaluate {run}",
            description="Measure the model that this run selected; the values of its data are defaults here.",
            default=EvaluateFlags(data),
            args=flags,
        )
    from torchcaps.inspect.evaluation import evaluate_run, leave_shares

    if asked.data.name != data.name:
        asked = dataclasses.replace(asked, data=leave_shares(asked.data, given_fields(flags)))
    found = evaluate_run(run, asked.data, asked.split, asked.device)
    if found.of_run is False and asked.data.name == data.name:
        why = "they were changed since" + ("" if asked.data == data else ", or these flags choose others")
        note(f"torchcaps: the {found.split} images are not those of the run: {why}")
    score = found.score
    if asked.json:
        say(dumps(found.describe()))
    else:
        said = f"accuracy {score.accuracy:.2%}, {score.errors} errors of {score.images}, loss {score.loss:.4f}"
        say(f"{found.split}: {said}")
    if asked.out is not None:
        for path in found.write(asked.out):
            note(str(path))


def inspect(run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")], out: Path | None = None) -> None:
    """Write the report of a run anew, finished or not: report.html, figures/ and tables in its folder.

    Where its data are gone, a report that shows what the model does with them stays as it is.

    For example: `torchcaps inspect runs/classify-0`.

    Args:
        run: the folder of a run
        out: folder that the report is written to; else that of the run
    """
    from torchcaps.report import write_report
    from torchcaps.report.report import ReportKept

    try:
        say(str(write_report(run, out=out)))
    except ReportKept as kept:
        note(f"torchcaps: {kept}")
        say(str(kept.page))
