"""Exports: ONNX Runtime's scores are the model's, and a packed model loads without its float weights."""

import json
from pathlib import Path

import onnx
import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from torchcaps import create_model, list_routings
from torchcaps.cli import main
from torchcaps.config import Config, DataConfig, ModelConfig
from torchcaps.deploy import export as exporting
from torchcaps.deploy.export import export_onnx, export_packed, export_pt2
from torchcaps.deploy.packing import load_packed, read_packed
from torchcaps.layers import use_implementation
from torchcaps.manifest import KEY, from_json
from torchcaps.models import CapsuleHead, HeadedModel, Model
from torchcaps.packed import PackedLayer, PackedXnorConv2d, pack
from torchcaps.routing import routing_class
from torchcaps.train import RunFolder, fit

BACKBONE = "test_efficientnet"  # timm's own for tests: 256 features


def trained(name, **options):
    """A model whose batch norms have seen something."""
    torch.manual_seed(0)
    model = create_model(name, image_size=32, num_classes=4, **options)
    use_implementation(model, "plain")
    model.train()(torch.rand(8, 3, 32, 32))
    return model.eval()


def own(routing):
    """A small network that `create_model` knows nothing of."""
    stem = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return HeadedModel(stem, CapsuleHead(routing, 12, 2))


def test_onnx_gives_equal_scores_for_any_batch(tmp_path):
    done = export_onnx(own("dynamic"), tmp_path / "model.onnx", image=(1, 6, 5))
    assert done.difference is not None and done.difference < 1e-5
    assert done.milliseconds is not None and 0 < done.milliseconds < 1000 and done.torch_milliseconds > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(0.0, "", marks=pytest.mark.slow),
        (0.1, "differ by up to 0.1"),
        pytest.param(float("nan"), "nan", marks=pytest.mark.slow),
    ],
)
def test_a_file_that_computes_otherwise_is_said(change, said, tmp_path, monkeypatch, caplog):
    """Also where only one of the outputs does, and where it is no number."""
    session = exporting._onnx_session

    def spoilt(path):
        run = session(path)
        assert run is not None
        return lambda images: [*(each for each in run(images)[:-1]), run(images)[-1] + change]

    monkeypatch.setattr(exporting, "_onnx_session", spoilt)
    done = export_onnx(own("dynamic"), tmp_path / "model.onnx", image=(1, 6, 5))
    assert done.difference == pytest.approx(change, abs=1e-5, nan_ok=True)
    assert ("computes otherwise than its model" in caplog.text) == bool(said) and said in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(("routing", "scales", "within"), [
    ("xnodr", torch.float32, 1e-5),
    ("xnodr", torch.float16, 1e-3),  # of rounded scales
    ("xnodr-xnidr", torch.float32, 1e-5),
])  # fmt: skip
def test_onnx_keeps_the_bits_of_binary_weights(routing, scales, within, tmp_path):
    stem = nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4))
    model = HeadedModel(stem, CapsuleHead(routing, (64, 4, 4), 50)).eval()
    done = export_onnx(model, tmp_path / "model.onnx", image=(1, 8, 8), scales=scales)
    weights = model.head.stack.layers[0].transform.weight.numel()
    others = 4 * (sum(each.numel() for each in model.parameters()) - weights)
    stored = weights // 8 + weights // 8 * scales.itemsize  # a bit each, and a scale for each column of eight
    graph = 60_000
    assert stored + others < done.bytes < stored + others + graph < 4 * weights / 5 * 2
    kinds = {each.name: each.data_type for each in onnx.load(done.path).graph.initializer}
    assert kinds["model.head.stack.layers.0.transform.bits"] == onnx.TensorProto.UINT8
    assert done.difference is not None and done.difference < within
    assert b".py" not in done.path.read_bytes()  # no path of this machine


@pytest.mark.slow
@pytest.mark.parametrize("routing", [spec.name for spec in list_routings()])
def test_every_routing_is_compared_when_it_is_exported(routing, tmp_path):
    torch.manual_seed(0)
    model = create_model(f"small-resnet.{routing}", num_classes=3, image_size=16, width=4)
    use_implementation(model, "plain")
    model.train()(torch.rand(4, 1, 16, 16))
    picture = torch.rand(1, 16, 16)
    for export, name in ((export_onnx, "model.onnx"), (export_pt2, "model.pt2")):
        done = export(model.eval(), tmp_path / name)
        assert done.difference is not None and done.difference < 1e-5, name
    program = torch.export.load(tmp_path / "model.pt2").module()
    scores, *capsules = program(picture[None])
    torch.testing.assert_close(scores, model(picture[None]).scores, rtol=1e-4, atol=1e-5)
    assert len(capsules) == 1 + routing_class(routing).spec.gives_activations


@pytest.mark.slow
@pytest.mark.parametrize(
    "routing", ["em", "xnidr", "xnodr", "dynamic", "fm", "inverted-attention", "uniform", "linear"]
)
def test_the_papers_backbone_exports_with_every_head(routing, tmp_path):
    done = export_onnx(trained(f"mobilenetv2_100.{routing}"), tmp_path / "model.onnx")
    assert done.difference is not None and done.difference < 1e-4


@pytest.mark.parametrize("routing", ["xnodr", "xnodr-xnidr"])
def test_a_packed_model_loads_without_its_float_weights(routing, tmp_path, monkeypatch):
    model = trained(f"{BACKBONE}.{routing}")
    done = export_packed(model, tmp_path / "model.safetensors")
    assert done.difference == pytest.approx(0, abs=1e-6)
    with safe_open(done.path, "pt") as file:
        names = set(file.keys())
        assert read_packed(file.metadata()).model["iterations"] == 3  # a default is an option too
    assert "head.stack.layers.0.transform.weight" not in names and "head.stack.layers.0.transform.bits" in names
    built = []
    monkeypatch.setattr(nn.init, "normal_", lambda tensor, *_, **__: built.append(tensor.device.type) or tensor)
    again = load_packed(done.path)
    maps = Path("/proc/self/maps")  # where there is none, such as on Windows, a file that is kept cannot be replaced
    assert not maps.exists() or str(done.path) not in maps.read_text()
    assert set(built) == {"meta"}  # nothing was drawn, and no memory taken, for weights
    assert isinstance(again.head.stack.layers[0], PackedLayer) and not again.training
    assert not any(tensor.is_meta for tensor in (*again.parameters(), *again.buffers()))
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(again(images).scores, model(images).scores)


def test_packed_files_of_before_load_and_those_of_strangers_are_checked(tmp_path):
    model = trained(f"{BACKBONE}.xnodr")
    path = export_packed(model, tmp_path / "model.safetensors").path
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    older = {"format": "torchcaps-packed-1", "origin": json.dumps(model.origin), "scales": "float32"}
    save_file(tensors, path, older)
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(load_packed(path)(images).scores, model(images).scores)
    for wrong, message in (
        (older | {"scales": "int8"}, "its scales are 'int8'"),
        (older | {"origin": '{"name": "../x"}'}, "must be one of `torchcaps list models`"),
        (metadata | {"format": "other"}, "its format is 'other'"),
    ):
        save_file(tensors, path, wrong)
        with pytest.raises(ValueError, match=message):
            load_packed(path)


@pytest.mark.parametrize("name", ["xnor-primary.xnodr", "xnor-convcaps.xnodr-xnidr", "xnor-primary.xnidr"])
def test_a_whole_model_is_packed_with_its_xnorized_convolutions(name, tmp_path):
    model = trained(f"{BACKBONE}.{name}")
    packed, images = pack(model), torch.rand(3, 3, 32, 32)
    assert type(packed) is type(model) and not packed.training and packed.origin == model.origin
    conv, layers = packed.head.primary.conv, packed.head.stack.layers
    assert isinstance(conv, PackedXnorConv2d) and conv.bits.numel() == -(-model.head.primary.conv.weight.numel() // 8)
    assert [isinstance(each, PackedLayer) for each in layers] == [not name.endswith(".xnidr")] * len(layers)
    scores = packed(images).scores
    assert not scores.requires_grad  # so that the loop serves outside of no_grad, too
    assert (packed(images).aux["steps"][-1].state is None) == (not name.endswith(".xnidr"))
    torch.testing.assert_close(scores, model(images).scores, rtol=1e-4, atol=1e-6)
    assert all(weight.requires_grad for weight in model.parameters())
    export_packed(model, tmp_path / "model.safetensors")
    torch.testing.assert_close(load_packed(tmp_path / "model.safetensors")(images).scores, scores)
    with pytest.raises(ValueError, match="no layer with binary weights"):
        pack(packed)


def test_half_scales_are_smaller_and_nearly_equal(tmp_path):
    model = trained(f"{BACKBONE}.xnodr")
    whole, half = (export_packed(model, tmp_path / str(scales), scales) for scales in (torch.float32, torch.float16))
    weights = 32 * 4 * 8 * 16
    assert abs((whole.bytes - half.bytes) - weights // 8 * 2) < 64
    assert half.difference is not None and 0 < half.difference < 1e-3


def test_scales_of_another_type_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"scales are torch.float64; they must be one of torch.float32"):
        export_packed(trained(f"{BACKBONE}.xnodr"), tmp_path / "model", torch.float64)
    assert not list(tmp_path.iterdir())


def test_a_run_is_exported(tmp_path):
    folder = fit(tiny.tiny_config(tmp_path, epochs=1)).folder
    done = export_onnx(folder, tmp_path / "run.onnx")
    assert done.difference is not None and done.difference < 1e-5
    held = RunFolder(folder).read_manifest()
    written = {each.key: each.value for each in onnx.load(done.path).metadata_props}
    assert from_json(written[KEY]) == held and held.classes == tuple("0123456789")
    with pytest.raises(ValueError, match="no layer with binary weights"):
        export_packed(folder, tmp_path / "run.safetensors")


def test_what_cannot_be_exported_is_named(tmp_path):
    model = own("xnodr")
    with pytest.raises(ValueError, match="give channels, height, width"):
        export_onnx(model, tmp_path / "own.onnx")
    with pytest.raises(ValueError, match="not built by create_model"):
        export_packed(model, tmp_path / "own.safetensors")
    assert isinstance(pack(model), Model)
    with pytest.raises(ValueError, match="not a packed model"):
        (tmp_path / "other").write_bytes(b"not safetensors")
        load_packed(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        load_packed(tmp_path / "nothing")


@pytest.mark.slow
def test_the_command_exports_a_run(tmp_path, capsys):
    config = Config(
        recipe="small",
        model=ModelConfig("capsnet", {"channels": 4, "primary": 2, "kernel": 5, "decoder": False, "routing": "xnodr"}),
        data=DataConfig("digits", image_size=16),
        epochs=1,
        out=tmp_path,
    )
    run = fit(config).folder
    assert main(["export", str(run)]) == 0 and (run / "model.onnx").exists()
    assert main(["export", str(run), "--format", "packed", "--scales", "float16", "--out", str(tmp_path / "half")]) == 0
    said = capsys.readouterr().out
    assert f"{(tmp_path / 'half').stat().st_size:,} bytes" in said and "scores differ by at most" in said
    assert main(["export", str(tmp_path / "nothing")]) == 2


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_a_model_of_any_precision_is_exported_in_float32(dtype, tmp_path):
    torch.manual_seed(0)
    model = create_model("small-resnet.dynamic", num_classes=3, in_channels=1, image_size=8).to(dtype).eval()
    done = export_pt2(model, tmp_path / "model.pt2")
    images = torch.rand(2, 1, 8, 8)
    (scores, *_) = torch.export.load(done.path).module()(images)
    wanted = model(images.to(dtype)).scores
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, wanted.float(), rtol=0, atol=0.02)
    assert {each.dtype for each in model.parameters()} == {dtype}


def test_units_that_serve_training_alone_are_not_exported(tmp_path):
    model = create_model("cnn-6-feedback", num_classes=3, in_channels=1, image_size=32, channels=2)
    whole, network = export_pt2(model, tmp_path / "a.pt2"), export_pt2(model.deployed(), tmp_path / "b.pt2")
    assert whole.bytes == network.bytes
    assert model.units is not None


def test_scales_are_of_binary_weights_alone(tmp_path):
    model = create_model("small-resnet.dynamic", num_classes=3, in_channels=1, image_size=8)
    with pytest.raises(ValueError, match=r"scales are torch.float16, but the model has no binary weights"):
        export_pt2(model, tmp_path / "model.pt2", scales=torch.float16)
    assert not list(tmp_path.iterdir())
