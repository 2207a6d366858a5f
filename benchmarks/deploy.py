"""A whole network as it is deployed: MobileNet V2 with an XnODR head at batch 1, trained, packed, in ONNX Runtime."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median

import onnxruntime
import torch
from report import interleaved, record
from torch.nn.utils import convert_conv2d_weight_memory_format

from torchcaps import create_model
from torchcaps.deploy.export import export_onnx, export_packed
from torchcaps.deploy.packing import load_packed

LAYOUT = torch.channels_last  # of whatever this library loads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--model", default="mobilenetv2_100.xnodr")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    model = convert_conv2d_weight_memory_format(create_model(flags.model, image_size=flags.image_size).eval(), LAYOUT)
    images = torch.rand(1, 3, flags.image_size, flags.image_size).contiguous(memory_format=LAYOUT)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        onnx = export_onnx(model, Path(folder, "model.onnx"))
        packed = export_packed(model, Path(folder, "model.safetensors"), torch.float16)
        again, options = load_packed(packed.path), onnxruntime.SessionOptions()
        options.intra_op_num_threads = flags.threads
        session = onnxruntime.InferenceSession(str(onnx.path), options)
        rows = images.contiguous().numpy()
        forms = {
            "trained": lambda: model(images),
            "packed": lambda: again(images),
            "onnx": lambda: session.run(None, {"images": rows}),
        }
        seconds = dict(zip(forms, interleaved(list(forms.values()), flags.repeats, warmup=3), strict=True))
    record(
        f"deploy/{flags.model}",
        {
            "threads": flags.threads,
            "image_size": flags.image_size,
            "repeats": flags.repeats,
            **{f"{form}_ms": round(1000 * median(each), 2) for form, each in seconds.items()},
            "trained_bytes": sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())),
            "packed_bytes": packed.bytes,
            "onnx_bytes": onnx.bytes,
            "packed_difference": packed.difference,
            "onnx_difference": onnx.difference,
        },
    )


if __name__ == "__main__":
    main()
