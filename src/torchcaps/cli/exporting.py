"""`torchcaps export`: a trained model as it is deployed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional


def export(
    run: Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")],
    format: Literal["onnx", "packed"] = "onnx",
    out: Path | None = None,
    scales: Literal["float32", "float16", "bfloat16"] = "float32",
) -> None:
    """Write the model that a run selected as ONNX, or with the binary weights of XnODR as one bit each.

    What is written is read back and compared with the model.

    Args:
        run: the folder of a run
        format: onnx, packed (a safetensors file for torchcaps.export.load_packed)
        out: the file; else model.onnx or packed.safetensors in the run's folder
        scales: packed: the type of the scales
    """
    from torchcaps.export import SCALES, export_onnx, export_packed

    if format == "onnx":
        written = export_onnx(run, out or run / "model.onnx")
    else:
        written = export_packed(run, out or run / "packed.safetensors", SCALES[scales])
    compared = (
        "not compared: onnxruntime is not installed"
        if written.difference is None
        else f"scores differ by at most {written.difference:.2g}"
    )
    print(f"{written.path}: {written.bytes:,} bytes; {compared}")
