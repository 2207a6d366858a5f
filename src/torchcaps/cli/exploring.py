"""`torchcaps explore`: a page in which a trained network answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from torchcaps.terminal import note, say


def explore(
    source: Annotated[Positional[str], tyro.conf.arg(metavar="RUN|FILE|NAME")],
    out: Path | None = None,
    runtime: Path | None = None,
) -> None:
    """Write a page, one file, in which a trained network answers for drawings and pictures, in the browser alone.

    It shows class capsules, lets their poses be moved while the image is decoded, and routing as flows. For example:
    `torchcaps explore digits --out digits.html`.

    Args:
        source: the folder of a run, a .safetensors file, or the name of weights of a checkout
        out: the file; else explore.html, in the run's folder where it is one
        runtime: folder of ONNX Runtime Web, by which the page computes; else that in the user's cache folder
    """
    from torchcaps.explore import write_explorer

    written = write_explorer(source, out, runtime)
    compared = "" if written.difference is None else f"; its outputs differ by at most {written.difference:.2g}"
    say(f"{written.path}: {written.bytes:,} bytes{compared}")
    for reason in written.absent.values():
        note(f"torchcaps: {reason}")
