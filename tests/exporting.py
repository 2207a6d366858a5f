"""A module exported with a batch of any size and run by ONNX Runtime, against the module itself."""

import tempfile
import warnings
from pathlib import Path

import onnxruntime
import torch


def onnx_error(module, *inputs):
    """The largest difference, by torch.export and by ONNX Runtime, for inputs [b, ...] and a batch of b + 3."""
    batch = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
    larger = [torch.cat((x, x.flip(0), x.roll(1, 0)))[: len(x) + 3] for x in inputs]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about its own insides
        program = torch.export.export(module, tuple(inputs), dynamic_shapes=batch)
        path = Path(folder, "module.onnx")
        torch.onnx.export(program, dynamo=True, verbose=False).save(path)
        session = onnxruntime.InferenceSession(path)
        feed = {there.name: x.numpy() for there, x in zip(session.get_inputs(), larger, strict=True)}
        wanted = module(*larger)
        found = torch.from_numpy(session.run(None, feed)[0])
        apart = torch.stack([x - wanted for x in (found, program.module()(*larger))])
        assert apart.isfinite().all()  # of what is no number Python's max may pick another
        return apart.abs().max().item()
