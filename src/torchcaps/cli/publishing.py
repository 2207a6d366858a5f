"""`torchcaps publish`: a finished run as others get it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from torchcaps.terminal import say


def publish(
    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")],
    target: Annotated[Positional[str], tyro.conf.arg(metavar="hf-hub:OWNER/NAME|FOLDER")],
    precision: Literal["auto", "float32", "bf16"] = "auto",
    private: bool = False,
    device: str = "auto",
) -> None:
    """Write the weights of a finished run with a card made of its records, to the Hugging Face hub or to a folder.

    On the hub whoever is logged in there (`hf auth login`) publishes, under their own name.

    For example: `torchcaps publish runs/classify-0 shared/classify`.

    Args:
        run: the folder of a run
        target: hf-hub:OWNER/NAME, or a folder that is made; torchcaps.load takes both
        precision: that weights are stored in; auto: bf16 where the test accuracy stays within 0.02 points
        private: on the hub: seen by its owner alone
        device: on which that accuracy is measured: auto, cpu, cuda, mps
    """
    from torchcaps.deploy.publish import publish_hub, write_package
    from torchcaps.models.pretrained import HUB, repository
    from torchcaps.tables.records import describe_run

    line = describe_run(run)
    if not target.startswith(HUB):
        written = write_package(run, target, line, precision, device=device)
        say(f"{written.folder}: {written.bytes:,} bytes of {written.precision}")
        return
    repository(target)  # before anything is measured
    with tempfile.TemporaryDirectory() as place:
        written = write_package(run, Path(place, "package"), line, precision, target, device)
        say(f"{publish_hub(written, target, private)}: {written.bytes:,} bytes of {written.precision}")
