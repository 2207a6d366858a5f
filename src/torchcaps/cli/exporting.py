"""`torchcaps export`: a trained model as it is deployed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from torchcaps.terminal import say

NAMES = {"onnx": "model.onnx", "pt2": "model.pt2", "packed": "packed.safetensors"}


def export(
    source: Annotated[Positional[str], tyro.conf.arg(metavar="RUN|FILE|NAME")],
    format: Literal["onnx", "pt2", "packed"] = "onnx",
    out: Path | None = None,
    scales: Literal["float32", "float16", "bfloat16"] = "float32",
) -> None:
    """Write a trained model; binary weights of XnODR stay one bit each in every format.

    What is written is read back, compared with the model, and timed beside it on this machine.

    For example: `torchcaps export runs/classify-0 --format pt2`.

    Args:
        source: the folder of a run, a .safetensors file, or the name of weights of a checkout
        format: onnx, pt2 (a program of torch.export), packed (weights of XnODR as a safetensors file)
        out: the file; else model.onnx, model.pt2 or packed.safetensors, in the run's folder where it is one
        scales: the type of the scales of binary weights
    """
    from torchcaps.deploy.export import export_onnx, export_packed, export_pt2
    from torchcaps.deploy.packing import SCALES

    write = {"onnx": export_onnx, "pt2": export_pt2, "packed": export_packed}[format]
    home = Path(source) if Path(source, "config.json").exists() else Path()
    written = write(source, home / NAMES[format] if out is None else out, scales=SCALES[scales])
    if written.difference is None or written.milliseconds is None:
        compared = "not compared: onnxruntime is not installed"
    else:
        times = f"{written.milliseconds:.2f} ms an image here, torch {written.torch_milliseconds:.2f}"
        compared = f"scores differ by at most {written.difference:.2g}; {times}"
    say(f"{written.path}: {written.bytes:,} bytes; {compared}")
