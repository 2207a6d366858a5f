"""Every routing compiled without a break, exported, and run by ONNX Runtime with another batch size."""

import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from layers import children, layer
from routings import FIRST, PAIRS, every_pair, every_variant
from torch import nn

from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, CapsuleStack

QUICKLY = ("dynamic",)  # exported in `make test`; the others in `make test-all`
SLOWLY = ("variational-bayes", "xnidr", "xnodr-xnidr")  # to be compiled


def compiled_equals_eager(stack, capsules, backend, rtol=1e-10):
    torch.compiler.reset()
    fast = torch.compile(stack, fullgraph=True, backend=backend)
    results = []
    for module in (stack, fast):
        poses = module(capsules)[-1].capsules.poses
        results.append((poses, *torch.autograd.grad(poses.square().sum(), list(stack.parameters()), allow_unused=True)))
    for a, b in zip(*results, strict=True):
        if a is None:  # what poses do not reach has no gradient, or after compiling zeros
            assert b is None or not b.any()
            continue
        assert b is not None
        if a is not None:
            torch.testing.assert_close(b, a, rtol=10 * rtol, atol=rtol / 100)


@pytest.mark.parametrize(
    ("routing", "options"),
    [pytest.param(*each, id=each[0], marks=pytest.mark.slow if each[0] in SLOWLY else ()) for each in FIRST],
)
def test_compiles_without_a_break(routing, options):
    module = layer("conv-padded", routing, **options)
    compiled_equals_eager(CapsuleStack([module], 2), children("conv-padded"), "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear-vector", "conv-padded"])
@every_variant
def test_every_setting_compiles(name, routing, options):
    compiled_equals_eager(CapsuleStack([layer(name, routing, **options)], 2), children(name), "aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize(
    ("name", "routing", "options"),
    [pair for pair in PAIRS if pair[0] in ("linear-vector", "conv-padded")],
    ids=lambda x: str(x) if x else "",
)
def test_inductor_equals_eager(name, routing, options):
    compiled_equals_eager(CapsuleStack([layer(name, routing, **options)], 2), children(name), "inductor")


class Routed(nn.Module):
    """A layer as exporters want it: tensors in, tensors out."""

    def __init__(self, module: CapsuleLayer):
        super().__init__()
        self.stack = CapsuleStack([module], 2)

    def forward(self, poses, activations):
        out = self.stack(Capsules(poses, activations))[-1].capsules
        return out.poses if out.activations is None else (out.poses, out.activations)


def exported_equals_eager(name, routing, options, path):
    model = Routed(layer(name, routing, dtype=torch.float32, **options)).eval()
    generator = torch.Generator().manual_seed(1)
    (poses, activations), batch = children(name, dtype=torch.float32), torch.export.Dim.DYNAMIC
    small, large = (
        (torch.randn(size, *poses.shape[1:], generator=generator), torch.rand(size, *activations.shape[1:]))
        for size in (3, 5)
    )
    for x in large:  # nothing is there in one image: where the exporter drops a small eps, that is NaN
        x[0] = 0
    program = torch.export.export(model, small, dynamic_shapes=({0: batch}, {0: batch}))
    torch.onnx.export(program, dynamo=True, verbose=False).save(path)
    session = onnxruntime.InferenceSession(path)
    feed = dict(zip(("poses", "activations"), (x.numpy() for x in large), strict=True))
    found = session.run(None, {x.name: feed[x.name] for x in session.get_inputs()})
    wanted = model(*large)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    again = program.module()(*large)
    for a, b, c in zip(wanted, again if isinstance(again, tuple) else (again,), found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(c, a.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of the exporter, about its own insides
@pytest.mark.parametrize(
    ("routing", "options"),
    [pytest.param(*each, id=each[0], marks=() if each[0] in QUICKLY else pytest.mark.slow) for each in FIRST],
)
def test_exports_with_any_batch_size(routing, options, tmp_path):
    name = "conv-padded" if ("conv-padded", routing, options) in PAIRS else "linear-vector"
    exported_equals_eager(name, routing, options, tmp_path / "layer.onnx")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@every_pair
def test_every_setting_exports(name, routing, options, tmp_path):
    exported_equals_eager(name, routing, options, tmp_path / "layer.onnx")
